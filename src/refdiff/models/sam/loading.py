"""MobileSAM: SAM's prompt encoder and decoder behind a TinyViT, built by the authors' package `mobile_sam`.

TinyViT is not part of segment_anything and is not rebuilt here; one architecture was published (vit_t).

SAM from a checkpoint in any of its usual layouts.

In: a .pth, .pt or .safetensors file as segment_anything or MobileSAM saves it, or a file or folder as
transformers' `SamModel` saves it. Out: `Part`, sized by the tensors and not yet in memory.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from refdiff.contracts.spec import SamSpec
from refdiff.errors import InputError, MissingDependencyError
from refdiff.models.files import TRANSFORMERS_WEIGHTS, read_checkpoint, trainer_prefix, weights_file
from refdiff.models.fitting import Part, check_kinds, fitted
from refdiff.models.sam import loading as mobile_sam
from refdiff.models.sam import transformers_layout
from refdiff.models.sam.sizes import build_sam, sam_sizes, sam_spec

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


SAM_MARKER = "image_encoder.patch_embed.proj.weight"
"""A tensor that every file of segment_anything's layout holds."""

_FOREIGN = {
    "mask_decoder.hf_token.": "HQ-SAM",
    "mask_decoder.hq_token.": "HQ-SAM",
    "sam_mask_decoder.": "SAM 2",
    "image_encoder.trunk.": "SAM 2",
    "vision_encoder.backbone.": "SAM 2",
}
"""Start of a key -> the relative of SAM it belongs to, whose arithmetic differs."""

_CONSTANTS = {"pixel_mean": SamSpec.pixel_mean, "pixel_std": SamSpec.pixel_std}
"""Once saved beside the weights; today's Sam keeps them to itself."""


@dataclass(frozen=True)
class _Stored:
    """A file's tensors by the names they had before training was made parallel."""

    file: Path
    tensors: Mapping[str, torch.Tensor]
    prefix: str
    """What the file has before each."""

    def refusal(self, name: str, text: str) -> InputError:
        return InputError(f"{self.file}: tensor {self.prefix}{name} {text}")


@dataclass(frozen=True)
class _Plan:
    """How a file becomes a module."""

    spec: SamSpec
    build: Callable[[], Any]
    keys: Mapping[str, str]
    """The module's name of a tensor -> the file's key."""
    written_as: Callable[[str], str] = str
    """The same, also for names of tensors that the file lacks."""


def load_sam(path: Path) -> Part[SamSpec]:
    """Size a SAM up; its weights are read when its loader is called.

    Args:
        path: a file, an index of shards, or a folder that transformers saved a `SamModel` into.

    Raises:
        InputError: no such file, damaged, not a SAM, or a SAM of an unknown architecture.
        MissingDependencyError: a MobileSAM, and the package `mobile_sam` is not installed.
    """
    file = weights_file(path, TRANSFORMERS_WEIGHTS, "SAM")
    checkpoint = read_checkpoint(file)
    check_kinds(checkpoint.tensors, file)
    prefix = trainer_prefix(checkpoint.tensors)
    bare = {key[len(prefix) :]: tensor for key, tensor in checkpoint.tensors.items()}
    plan = _behind(prefix, _plan(_Stored(file, bare, prefix)))

    def load() -> Any:
        # Opened again: a mapping kept from before would hold what was read of it in memory after a release.
        stored = read_checkpoint(file).tensors
        tensors = {name: stored[key] for name, key in plan.keys.items() if key in stored}
        return fitted(plan.build, tensors, file=file, written_as=plan.written_as)

    return Part(spec=plan.spec, loaders={"sam": load}, sources={"sam": checkpoint.sha256})


def _behind(prefix: str, plan: _Plan) -> _Plan:
    """The plan for a file that has `prefix` before each of its keys."""
    keys = {name: prefix + key for name, key in plan.keys.items()}
    return replace(plan, keys=keys, written_as=lambda name: prefix + plan.written_as(name))


def _plan(stored: _Stored) -> _Plan:
    tensors = stored.tensors
    _refuse_relatives(stored)
    if SAM_MARKER in tensors:
        return _plan_original(stored)
    if transformers_layout.MARKER in tensors:
        return _plan_transformers(stored)
    if mobile_sam.MARKER in tensors:
        return _Plan(mobile_sam.MOBILE_SAM, mobile_sam.mobile_sam_builder(), _keys_of_weights(stored))
    raise InputError(
        f"{stored.file} is no SAM checkpoint: it holds {next(iter(tensors))} and no {SAM_MARKER}; expected "
        "a file of segment_anything, of MobileSAM or of transformers' SamModel"
    )


def _plan_original(stored: _Stored) -> _Plan:
    sizes = sam_sizes(stored.tensors, stored.file, written_as=lambda name: stored.prefix + name)
    return _Plan(sam_spec(sizes), lambda: build_sam(sizes), _keys_of_weights(stored))


def _plan_transformers(stored: _Stored) -> _Plan:
    renaming = transformers_layout.rename(stored.tensors, stored.file)
    sizes = sam_sizes(
        {name: stored.tensors[key] for name, key in renaming.keys.items()},
        stored.file,
        written_as=lambda name: stored.prefix + renaming.written_as(name),
        decoder_heads=transformers_layout.read_decoder_heads(stored.file.parent),
    )
    return _Plan(sam_spec(sizes), lambda: build_sam(sizes), renaming.keys, renaming.written_as)


def _refuse_relatives(stored: _Stored) -> None:
    for key in stored.tensors:
        relative = next((name for start, name in _FOREIGN.items() if key.startswith(start)), None)
        if relative is not None:
            raise stored.refusal(key, f"belongs to {relative}, which is not supported; use a SAM")


def _keys_of_weights(stored: _Stored) -> dict[str, str]:
    """The module's names, which are the file's keys, without constants that the module does not save."""
    tensors = stored.tensors
    for key, values in _CONSTANTS.items():
        expected = torch.tensor(values)
        if key in tensors and not torch.equal(tensors[key].flatten(), expected.to(tensors[key].dtype)):
            raise stored.refusal(key, f"is not SAM's {list(values)}; use a SAM for such pictures")
    return {key: key for key in tensors if key not in _CONSTANTS}
