"""Files of small SAMs: SAM's prompt encoder and decoder behind another image encoder.

In: tensors by their names in the file. Out: sizes, and the file's name of each tensor of the module.

MobileSAM's file holds an image classifier's head too, which nothing reads, and it puts the downsampling in
front of a stage at the end of the stage before. Source: MobileSAM, mobile_sam/modeling/tiny_vit_sam.py.
EfficientViT-SAM's module has the names of its file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from refdiff.models.configs import Shapes
from refdiff.models.sam.sizes import (
    MOBILE_SAM,
    AnySamSizes,
    EfficientSamSizes,
    TinySamSizes,
    infer_decoder_sizes,
)
from refdiff.networks.efficient_vit import FAMILIES, efficient_vit_sizes
from refdiff.networks.tiny_vit import TinyVitSizes


@dataclass(frozen=True, kw_only=True)
class SmallLayout:
    """The files of one kind of small SAM."""

    mark: str
    """A tensor that every file holds."""
    infer_sizes: Callable[[Shapes], AnySamSizes]
    """Raises InputError if a tensor that determines a size is missing, or cannot belong to such a SAM."""
    written_as: Callable[[str], str] = str
    """From the module's name of a tensor to the file's."""
    is_read: Callable[[str], bool] = bool
    """Returns whether the module should have a place for a tensor of the file."""


def find(tensors: Mapping[str, Any]) -> SmallLayout | None:
    """Return the layout of a file; None if it is none of these."""
    return next((layout for layout in (_MOBILE_SAM, _EFFICIENT) if layout.mark in tensors), None)


_ENCODER = "image_encoder."
_CLASSIFIER = re.compile(r"image_encoder\.(norm_head|head)\..*|.*\.attention_bias_idxs")
"""What TinyViT was pre-trained with, and a table that is computed from the windows' side."""
_STAGE = re.compile(r"stages\.(\d+)\.(downsample\.)?(.+)")
_EMBEDDING = {"patch_embed.conv1.": "patch_embed.seq.0.", "patch_embed.conv2.": "patch_embed.seq.2."}


def _mobile_sizes(shapes: Shapes) -> TinySamSizes:
    layers, strides = f"{_ENCODER}layers", MOBILE_SAM.encoder.strides
    count = len(strides) + 1
    found = shapes.count(layers)
    if found != count:
        raise shapes.error(
            _MOBILE_SAM.mark, f"belongs to an encoder of {found} stages, expected MobileSAM's {count}"
        )
    widths = [shapes.shape(f"{_ENCODER}patch_embed.seq.2.c.weight", 4)[0]]
    widths += [
        shapes.shape(f"{layers}.{stage}.downsample.conv1.c.weight", 4)[0] for stage in range(count - 1)
    ]
    attentions = [_heads_and_window(shapes, f"{layers}.{stage}", widths[stage]) for stage in range(1, count)]
    decoder = infer_decoder_sizes(shapes)
    encoder = TinyVitSizes(
        widths=tuple(widths),
        depths=tuple(shapes.count(f"{layers}.{stage}.blocks") for stage in range(count)),
        heads=tuple(heads for heads, _ in attentions),
        windows=tuple(window for _, window in attentions),
        strides=strides,
        embed_channels=decoder["embed_channels"],
    )
    return TinySamSizes(encoder=encoder, **decoder)


def _heads_and_window(shapes: Shapes, stage: str, width: int) -> tuple[int, int]:
    """Return the heads of a stage, and its windows' side: a bias for each head and each distance."""
    name = f"{stage}.blocks.0.attn.attention_biases"
    heads, distances = shapes.shape(name, 2)
    window = math.isqrt(distances)
    if window**2 != distances or width % heads:
        raise shapes.error(
            name,
            f"has shape {[heads, distances]}, expected heads of {width} channels, and a square number",
        )
    return heads, window


def _mobile_name(name: str) -> str:
    inner = name.removeprefix(_ENCODER)
    if inner == name:
        return name
    for ours, theirs in _EMBEDDING.items():
        inner = inner.replace(ours, theirs)
    stage = _STAGE.fullmatch(inner)
    if stage:
        index, downsampling, rest = int(stage[1]), stage[2] or "", stage[3]
        inner = f"layers.{index - bool(downsampling)}.{downsampling}{rest}"
    return _ENCODER + inner.replace(".conv.", ".c.")


_MOBILE_SAM = SmallLayout(
    mark="image_encoder.patch_embed.seq.0.c.weight",
    infer_sizes=_mobile_sizes,
    written_as=_mobile_name,
    is_read=lambda key: _CLASSIFIER.fullmatch(key) is None,
)


def _efficient_sizes(shapes: Shapes) -> EfficientSamSizes:
    stages = f"{_ENCODER}backbone.stages"
    count = shapes.count(stages)
    if count not in FAMILIES:
        raise shapes.error(
            _EFFICIENT.mark,
            f"belongs to an encoder of {count} stages, expected {' or '.join(map(str, FAMILIES))}",
        )
    decoder = infer_decoder_sizes(shapes)
    encoder = efficient_vit_sizes(
        depths=tuple(shapes.count(f"{stages}.{stage}.op_list") - 1 for stage in range(count)),
        neck_depth=shapes.count(f"{_ENCODER}neck.middle.op_list"),
    )
    return EfficientSamSizes(encoder=encoder, image_size=encoder.image_size, **decoder)


_EFFICIENT = SmallLayout(
    mark="image_encoder.backbone.stages.0.op_list.0.conv.weight", infer_sizes=_efficient_sizes
)
