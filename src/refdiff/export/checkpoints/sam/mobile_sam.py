"""MobileSAM: SAM's prompt encoder and decoder behind a TinyViT, built by the authors' package `mobile_sam`.

TinyViT is not part of segment_anything and is not rebuilt here; one architecture was published (vit_t).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

from refdiff.contracts.spec import SamSpec
from refdiff.errors import InputError, MissingDependencyError

MARKER = "image_encoder.patch_embed.seq.0.c.weight"
"""A tensor that every file of this layout holds."""

MOBILE_SAM = SamSpec(image_size=1024, embed_channels=256, embed_size=64)
"""mobile_sam/build_sam.py, build_sam_vit_t; the TinyViT's forward pass has the 64 written into it."""

_INSTALL = "pip install timm git+https://github.com/ChaoningZhang/MobileSAM.git"
"""The authors' way (README.md of that repository); they publish no release on the package index."""


def mobile_sam_builder() -> Callable[[], Any]:
    """What builds the module: a `mobile_sam.modeling.Sam`, which has segment_anything's parts and names.

    Raises:
        MissingDependencyError: the package is not installed.
        InputError: it is installed and knows no vit_t.
    """
    try:
        with warnings.catch_warnings():
            # It imports timm under names that timm has moved, and registers its models there a second time.
            warnings.simplefilter("ignore")
            package = importlib.import_module("mobile_sam")
    except ModuleNotFoundError as error:
        if error.name != "mobile_sam":
            raise
        raise MissingDependencyError(
            f"this is a MobileSAM checkpoint, and the package mobile_sam is not installed: {_INSTALL}"
        ) from error
    builder: Callable[[], Any] | None = getattr(package, "sam_model_registry", {}).get("vit_t")
    if builder is None:
        raise InputError(f"the installed package mobile_sam knows no vit_t; install the authors': {_INSTALL}")
    return builder
