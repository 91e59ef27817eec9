"""Layouts of SAM checkpoints: of transformers, of MobileSAM and of EfficientViT-SAM.

In: tensors by their names in the file. Out: sizes, and the file's name of each tensor of the module.

transformers' `SamModel` (facebook/sam-vit-huge on the hub) has another name for every tensor. The pairs below
follow its modeling_sam.py and convert_sam_to_hf.py. The two models differ in one number: the layer norms of
transformers' decoder use an epsilon of 1e-6, those of segment_anything 1e-5. The latter is used, with which
the published weights were trained.

MobileSAM's file holds an image classifier's head too, which nothing reads, and it puts the downsampling in
front of a stage at the end of the stage before. Source: MobileSAM, mobile_sam/modeling/tiny_vit_sam.py.
EfficientViT-SAM's module has the names of its file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refdiff.errors import InputError
from refdiff.models.configs import Shapes, positive_whole, read_json, section
from refdiff.models.sam.sizes import (
    DECODER_HEADS,
    MOBILE_SAM,
    AnySamSizes,
    EfficientSamSizes,
    TinySamSizes,
    infer_decoder_sizes,
)
from refdiff.networks.efficient_vit import FAMILIES, efficient_vit_sizes
from refdiff.networks.tiny_vit import TinyVitSizes

CONFIG = "config.json"

_FREQUENCIES = "shared_image_embedding.positional_embedding"
_FREQUENCIES_AGAIN = "prompt_encoder.shared_embedding.positional_embedding"
"""The same tensor, which older files hold twice."""

_PREFIXES = (
    ("image_encoder.patch_embed.proj.", "vision_encoder.patch_embed.projection."),
    ("image_encoder.blocks.", "vision_encoder.layers."),
    ("image_encoder.neck.0.", "vision_encoder.neck.conv1."),
    ("image_encoder.neck.1.", "vision_encoder.neck.layer_norm1."),
    ("image_encoder.neck.2.", "vision_encoder.neck.conv2."),
    ("image_encoder.neck.3.", "vision_encoder.neck.layer_norm2."),
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", _FREQUENCIES),
    ("prompt_encoder.point_embeddings.", "prompt_encoder.point_embed."),
    ("prompt_encoder.mask_downscaling.0.", "prompt_encoder.mask_embed.conv1."),
    ("prompt_encoder.mask_downscaling.1.", "prompt_encoder.mask_embed.layer_norm1."),
    ("prompt_encoder.mask_downscaling.3.", "prompt_encoder.mask_embed.conv2."),
    ("prompt_encoder.mask_downscaling.4.", "prompt_encoder.mask_embed.layer_norm2."),
    ("prompt_encoder.mask_downscaling.6.", "prompt_encoder.mask_embed.conv3."),
    ("mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
)
"""Start of a name in segment_anything, and in transformers."""

_NORM = re.compile(r"\.norm(\d|_final_attn)\.")
_LAYER_NORM = re.compile(r"\.layer_norm(\d|_final_attn)\.")
_HEAD = r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)"
_OUR_LAYER = re.compile(_HEAD + r"layers\.(\d+)\.")
_THEIR_LAYER = re.compile(_HEAD + r"(proj_in|proj_out|layers\.(\d+))\.")

_USUAL_LAYERS = 3
"""Layers of each MLP of the decoder."""

_ACTIVATIONS = {"vision_config": "gelu", "prompt_encoder_config": "gelu", "mask_decoder_config": "relu"}
"""Part of the config -> segment_anything's activation in it."""

_EPSILON = 1e-6
"""`layer_norm_eps` of every part of the published SAMs. Source: transformers, configuration_sam.py."""


def read_decoder_heads(folder: Path) -> int:
    """Read the decoder's heads from the folder's config.json; without one, return the published number.

    Raises:
        InputError: it is no config of a SAM, or segment_anything cannot compute it.
    """
    file = folder / CONFIG
    if not file.is_file():
        return DECODER_HEADS
    document = read_json(file)
    heads: object = DECODER_HEADS
    for name, activation in _ACTIVATIONS.items():
        part = section(document, name, file) if document.get(name) else {}
        for field, usual in (("hidden_act", activation), ("layer_norm_eps", _EPSILON)):
            found = part.get(field, usual)
            if found != usual:
                raise InputError(f"{file}: {name}.{field} is {found!r}, expected SAM's {usual!r}")
        if name == "mask_decoder_config":
            heads = part.get("num_attention_heads", DECODER_HEADS)
    return positive_whole(heads, "num_attention_heads", file)


@dataclass(frozen=True)
class Renaming:
    """segment_anything's names for a file's keys."""

    keys: Mapping[str, str]
    """segment_anything's name of a tensor -> the file's key; an unknown key keeps its name."""
    layers: Mapping[str, int]
    """MLP of the decoder -> its number of layers."""

    def written_as(self, name: str) -> str:
        """Return the key under which transformers saves segment_anything's `name`, in this file or not."""
        if name in self.keys:
            return self.keys[name]
        for ours, theirs in _PREFIXES:
            if name.startswith(ours):
                name = theirs + name[len(ours) :]
                break
        match = _OUR_LAYER.match(name)
        if match:
            layer, last = int(match[2]), self.layers.get(match[1], _USUAL_LAYERS) - 1
            place = {0: "proj_in", last: "proj_out"}.get(layer, f"layers.{layer - 1}")
            return f"{match[1]}{place}.{name[match.end() :]}"
        return _NORM.sub(r".layer_norm\1.", name)


def rename(tensors: Mapping[str, torch.Tensor], file: Path) -> Renaming:
    """Find segment_anything's name of every tensor in a file of transformers' layout.

    Raises:
        InputError: two keys have one name.
    """
    layers = _count_layers(tensors)
    keys: dict[str, str] = {}
    for key in _unique_keys(tensors, file):
        name = _original_name(key, layers)
        if name in keys:
            raise InputError(f"{file}: tensors {keys[name]} and {key} are one; use a file of one layout")
        keys[name] = key
    return Renaming(keys, layers)


def _unique_keys(tensors: Mapping[str, torch.Tensor], file: Path) -> list[str]:
    """Return the keys without the second one of the position frequencies."""
    if _FREQUENCIES not in tensors or _FREQUENCIES_AGAIN not in tensors:
        return list(tensors)
    if not torch.equal(tensors[_FREQUENCIES], tensors[_FREQUENCIES_AGAIN]):
        raise InputError(
            f"{file}: tensor {_FREQUENCIES_AGAIN} is not equal to {_FREQUENCIES}; fetch it again"
        )
    return [key for key in tensors if key != _FREQUENCIES_AGAIN]


def _count_layers(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    places: dict[str, set[str]] = {}
    for match in filter(None, map(_THEIR_LAYER.match, tensors)):
        places.setdefault(match[1], set()).add(match[2])
    return {head: len(found) for head, found in places.items()}


def _original_name(key: str, layers: Mapping[str, int]) -> str:
    if key == _FREQUENCIES_AGAIN:
        key = _FREQUENCIES
    for ours, theirs in _PREFIXES:
        if key.startswith(theirs):
            key = ours + key[len(theirs) :]
            break
    match = _THEIR_LAYER.match(key)
    if match:
        layer = {"proj_in": 0, "proj_out": layers[match[1]] - 1}.get(match[2], int(match[3] or 0) + 1)
        return f"{match[1]}layers.{layer}.{key[match.end() :]}"
    return _LAYER_NORM.sub(r".norm\1.", key)


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


def find_small(tensors: Mapping[str, Any]) -> SmallLayout | None:
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
