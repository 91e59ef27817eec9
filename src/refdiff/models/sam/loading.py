"""SAM from a checkpoint in any of its usual layouts.

In: a .pth, .pt or .safetensors file as segment_anything, MobileSAM or EfficientViT-SAM saves it, or a file or
folder as transformers' `SamModel` saves it. Out: a `Part`, sized by the tensors and not yet in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.spec import SamSpec
from refdiff.errors import BundleError, InputError
from refdiff.models.checkpoint import (
    find_weights,
    read_checkpoint,
    report_read_errors,
    split_trainer_prefix,
)
from refdiff.models.configs import Shapes, first_line
from refdiff.models.fitting import Part, check_dtypes, fit_module
from refdiff.models.hub.names import TRANSFORMERS_WEIGHTS
from refdiff.models.sam import layouts
from refdiff.models.sam.sizes import build_sam, infer_sam_sizes, sam_spec
from refdiff.networks.onnx_encoder import OnnxEncoder
from refdiff.passes.graph_files import load_graph

_ORIGINAL = "image_encoder.patch_embed.proj.weight"
_TRANSFORMERS = "vision_encoder.patch_embed.projection.weight"
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


def load_sam(path: Path, encoder: Path | None = None) -> Part[SamSpec]:
    """Open a SAM checkpoint; its weights are read when its loader is called.

    Args:
        path: a file, an index of shards, or a folder that transformers saved a `SamModel` into.
        encoder: an ONNX file with an image encoder for this decoder, such as NanoSAM's for MobileSAM.

    Raises:
        InputError: no such file, damaged, not a SAM, or a SAM of an unknown architecture.
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

    part = Part(spec=layout.spec, loaders={"sam": load}, sources={"sam": checkpoint.sha256})
    return part if encoder is None else _with_encoder(part, encoder)


def _with_encoder(part: Part[SamSpec], file: Path) -> Part[SamSpec]:
    """Return a SAM whose image encoder is the graph in an ONNX file."""
    with report_read_errors(file):
        if not file.is_file():
            raise InputError(f"SAM encoder {file} is not a file; name the ONNX file of an image encoder")
        sha256 = hash_file(file)
    _check_embedding(_read_encoder(file), part.spec, file)

    def load() -> Any:
        sam = part.loaders["sam"]()
        sam.image_encoder = _read_encoder(file)
        return sam

    return replace(part, loaders={"sam": load}, sources={"sam": f"{part.sources['sam']}, encoder {sha256}"})


def _read_encoder(file: Path) -> OnnxEncoder:
    try:
        graph = load_graph(file)
    except BundleError as error:
        raise InputError(f"{file} is no ONNX file with its weights; fetch it again") from error
    return OnnxEncoder(graph, file).eval()


def _check_embedding(encoder: OnnxEncoder, spec: SamSpec, file: Path) -> None:
    """Refuse an encoder of another embedding; only shapes are computed."""
    advice = "use an encoder that was made for this SAM"
    expected = [1, spec.embed_channels, spec.embed_size, spec.embed_size]
    image = torch.empty(1, 3, spec.image_size, spec.image_size, device="meta")
    try:
        got = list(encoder.to("meta")(image).shape)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file} cannot encode an image of {spec.image_size} px ({first_line(error)}); {advice}"
        ) from error
    if got != expected:
        raise InputError(f"{file} makes an embedding of {got}, expected {expected}; {advice}")


def _read_layout(stored: _Stored) -> _Layout:
    tensors = stored.tensors
    _refuse_relatives(stored)
    if _ORIGINAL in tensors:
        sizes = infer_sam_sizes(tensors, stored.file, written_as=lambda name: stored.prefix + name)
        return _Layout(sam_spec(sizes), lambda: build_sam(sizes), _keys_of_weights(stored))
    if _TRANSFORMERS in tensors:
        return _read_transformers(stored)
    small = layouts.find_small(tensors)
    if small is not None:
        return _read_small(stored, small)
    raise InputError(
        f"{stored.file} is no SAM checkpoint: it holds {next(iter(tensors))} and no {_ORIGINAL}; expected "
        "a file of segment_anything, MobileSAM, EfficientViT-SAM or transformers' SamModel"
    )


def _read_small(stored: _Stored, small: layouts.SmallLayout) -> _Layout:
    sizes = small.infer_sizes(Shapes(stored.file, stored.tensors, lambda name: stored.prefix + name))
    with init_empty_weights():
        names = build_sam(sizes).state_dict()
    placed = {name: small.written_as(name) for name in names}
    known = set(placed.values())
    surplus = {key: key for key in _keys_of_weights(stored) if key not in known and small.is_read(key)}
    return _Layout(sam_spec(sizes), lambda: build_sam(sizes), placed | surplus, small.written_as)


def _read_transformers(stored: _Stored) -> _Layout:
    renaming = layouts.rename(stored.tensors, stored.file)
    sizes = infer_sam_sizes(
        {name: stored.tensors[key] for name, key in renaming.keys.items()},
        stored.file,
        written_as=lambda name: stored.prefix + renaming.written_as(name),
        decoder_heads=layouts.read_decoder_heads(stored.file.parent),
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
