"""SAM from a checkpoint in any of its usual layouts.

In: a .pth, .pt or .safetensors file as segment_anything or MobileSAM saves it, or a file or folder as
transformers' `SamModel` saves it. Out: a `Part`, sized by the tensors and not yet in memory.

MobileSAM is SAM's prompt encoder and decoder with a TinyViT, which the authors' package `mobile_sam` builds:
it is not part of segment_anything. One architecture was published (vit_t).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refdiff.contracts.spec import SamSpec
from refdiff.errors import InputError, MissingDependencyError
from refdiff.models.checkpoint import find_weights, read_checkpoint, split_trainer_prefix
from refdiff.models.fitting import Part, check_dtypes, fit_module
from refdiff.models.hub.names import TRANSFORMERS_WEIGHTS
from refdiff.models.sam import transformers_layout
from refdiff.models.sam.sizes import build_sam, infer_sam_sizes, sam_spec

_ORIGINAL = "image_encoder.patch_embed.proj.weight"
_TRANSFORMERS = "vision_encoder.patch_embed.projection.weight"
MOBILE_SAM = "image_encoder.patch_embed.seq.0.c.weight"
"""A tensor that every file of the layout holds."""

_MOBILE_SAM_SPEC = SamSpec(image_size=1024, embed_channels=256, embed_size=64)
"""mobile_sam/build_sam.py, build_sam_vit_t; the TinyViT's forward pass has the 64 hard-coded."""

_INSTALL = "pip install timm git+https://github.com/ChaoningZhang/MobileSAM.git"
"""From that repository's README.md; the authors publish no release on the package index."""

_FOREIGN = {
    "mask_decoder.hf_token.": "HQ-SAM",
    "mask_decoder.hq_token.": "HQ-SAM",
    "sam_mask_decoder.": "SAM 2",
    "image_encoder.trunk.": "SAM 2",
    "vision_encoder.backbone.": "SAM 2",
}
"""Start of a key -> the relative of SAM it belongs to, which computes something else."""

_CONSTANTS = {"pixel_mean": SamSpec.pixel_mean, "pixel_std": SamSpec.pixel_std}
"""Once saved with the weights; today's Sam does not save them."""


@dataclass(frozen=True)
class _Stored:
    """A file's tensors by their names before data-parallel training."""

    file: Path
    prefix: str
    """Prefix of each name in the file."""
    tensors: Mapping[str, torch.Tensor]

    def error(self, name: str, text: str) -> InputError:
        return InputError(f"{self.file}: tensor {self.prefix}{name} {text}")


@dataclass(frozen=True)
class _Layout:
    """A file's layout: the module to build, and the names of its tensors in the file."""

    spec: SamSpec
    build: Callable[[], Any]
    keys: Mapping[str, str]
    """The module's name of a tensor -> its name in `_Stored`."""
    written_as: Callable[[str], str] = str
    """The same, also for tensors that the file lacks."""


def load_sam(path: Path) -> Part[SamSpec]:
    """Open a SAM checkpoint; its weights are read when its loader is called.

    Args:
        path: a file, an index of shards, or a folder that transformers saved a `SamModel` into.

    Raises:
        InputError: no such file, damaged, not a SAM, or a SAM of an unknown architecture.
        MissingDependencyError: a MobileSAM, and the package `mobile_sam` is not installed.
    """
    file = find_weights(path, TRANSFORMERS_WEIGHTS, "SAM")
    checkpoint = read_checkpoint(file)
    check_dtypes(checkpoint.tensors, file)
    prefix, tensors = split_trainer_prefix(checkpoint.tensors)
    layout = _read_layout(_Stored(file, prefix, tensors))

    def load() -> Any:
        # Read again: the mapping from above would keep its pages in memory after a release.
        _, stored = split_trainer_prefix(read_checkpoint(file).tensors)
        return fit_module(
            layout.build,
            {name: stored[key] for name, key in layout.keys.items() if key in stored},
            file=file,
            written_as=lambda name: prefix + layout.written_as(name),
        )

    return Part(spec=layout.spec, loaders={"sam": load}, sources={"sam": checkpoint.sha256})


def _read_layout(stored: _Stored) -> _Layout:
    tensors = stored.tensors
    _refuse_relatives(stored)
    if _ORIGINAL in tensors:
        sizes = infer_sam_sizes(tensors, stored.file, written_as=lambda name: stored.prefix + name)
        return _Layout(sam_spec(sizes), lambda: build_sam(sizes), _keys_of_weights(stored))
    if _TRANSFORMERS in tensors:
        return _read_transformers(stored)
    if MOBILE_SAM in tensors:
        return _Layout(_MOBILE_SAM_SPEC, mobile_sam_builder(), _keys_of_weights(stored))
    raise InputError(
        f"{stored.file} is no SAM checkpoint: it holds {next(iter(tensors))} and no {_ORIGINAL}; expected "
        "a file of segment_anything, of MobileSAM or of transformers' SamModel"
    )


def _read_transformers(stored: _Stored) -> _Layout:
    renaming = transformers_layout.rename(stored.tensors, stored.file)
    sizes = infer_sam_sizes(
        {name: stored.tensors[key] for name, key in renaming.keys.items()},
        stored.file,
        written_as=lambda name: stored.prefix + renaming.written_as(name),
        decoder_heads=transformers_layout.read_decoder_heads(stored.file.parent),
    )
    return _Layout(sam_spec(sizes), lambda: build_sam(sizes), renaming.keys, renaming.written_as)


def _refuse_relatives(stored: _Stored) -> None:
    for key in stored.tensors:
        relative = next((name for start, name in _FOREIGN.items() if key.startswith(start)), None)
        if relative is not None:
            raise stored.error(key, f"belongs to {relative}, which is not supported; use a SAM")


def _keys_of_weights(stored: _Stored) -> dict[str, str]:
    """Return the module's names, which are the file's, without constants that the module does not save."""
    tensors = stored.tensors
    for key, values in _CONSTANTS.items():
        expected = torch.tensor(values)
        if key in tensors and not torch.equal(tensors[key].flatten(), expected.to(tensors[key].dtype)):
            raise stored.error(key, f"is not SAM's {list(values)}; use a SAM with the usual preprocessing")
    return {key: key for key in tensors if key not in _CONSTANTS}


def mobile_sam_builder() -> Callable[[], Any]:
    """Return the function that builds a `mobile_sam.modeling.Sam`, whose parts and names are those of SAM.

    Raises:
        MissingDependencyError: the package is not installed.
        InputError: the installed package has no vit_t.
    """
    try:
        with warnings.catch_warnings():
            # It uses names that timm has moved, and registers models that timm has registered.
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
        raise InputError(f"the installed package mobile_sam has no vit_t; install the authors': {_INSTALL}")
    return builder
