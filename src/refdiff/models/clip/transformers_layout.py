"""transformers' CLIPModel under open_clip's names: keys renamed, query, key and value packed into one tensor.

In: a state dict as CLIPModel saves it. Out: the same weights by open_clip.CLIP's names; a tensor without a
counterpart keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from refdiff.errors import InputError

_NAMES = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",  # transformers' spelling
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "visual_projection.weight": "visual.proj",
}

_TRANSPOSED = {"text_projection", "visual.proj"}
"""Weights of a linear layer in transformers, matrices multiplied from the right in open_clip."""

_INSIDE_A_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}

_TOWERS = {"text_model": "transformer", "vision_model": "visual.transformer"}

_PACKED = ("q", "k", "v")
"""In open_clip's order."""

_BLOCK = re.compile(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OUR_BLOCK = re.compile(r"((?:visual\.)?transformer)\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_NO_WEIGHTS = re.compile(r"(text_model|vision_model)\.embeddings\.position_ids")
"""The constant 0, 1, 2 ..., which older releases saved."""


def is_transformers(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a state dict has the layout of CLIPModel, or of a related model."""
    return any(name.startswith(tuple(f"{tower}." for tower in _TOWERS)) for name in tensors)


def to_open_clip(tensors: Mapping[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """Return the weights by open_clip's names.

    Args:
        tensors: CLIPModel's state dict; meta tensors suffice.
        file: its origin, for messages.

    Raises:
        InputError: a block lacks one of query, key and value, or their shapes differ.
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is not None and block[3] == "self_attn.q_proj":
            packed = f"{_TOWERS[block[1]]}.resblocks.{block[2]}.attn.in_proj_{block[4]}"
            renamed[packed] = _pack(tensors, name, file)
        elif block is not None and block[3] in _INSIDE_A_BLOCK:
            place = f"{_TOWERS[block[1]]}.resblocks.{block[2]}.{_INSIDE_A_BLOCK[block[3]]}"
            renamed[f"{place}.{block[4]}"] = tensor
        elif not _is_packed_or_empty(name, tensors):
            ours = _NAMES.get(name, name)
            renamed[ours] = tensor.T.contiguous() if ours in _TRANSPOSED and tensor.ndim == 2 else tensor
    return renamed


def written_by_transformers(name: str) -> str:
    """Return CLIPModel's name of an open_clip tensor; the query's for a packed one."""
    for theirs, ours in _NAMES.items():
        if ours == name:
            return theirs
    block = _OUR_BLOCK.fullmatch(name)
    if block is None:
        return name
    inside = {ours: theirs for theirs, ours in _INSIDE_A_BLOCK.items()} | {"attn.in_proj": "self_attn.q_proj"}
    tower = next(theirs for theirs, ours in _TOWERS.items() if ours == block[1])
    return f"{tower}.encoder.layers.{block[2]}.{inside.get(block[3], block[3])}.{block[4]}"


def _pack(tensors: Mapping[str, torch.Tensor], query: str, file: Path) -> torch.Tensor:
    names = [query.replace(".q_proj.", f".{letter}_proj.") for letter in _PACKED]
    for name in names:
        if name not in tensors:
            raise InputError(f"{file}: tensor {name} is missing; use a checkpoint of a known layout")
        if tensors[name].shape != tensors[query].shape:
            raise InputError(
                f"{file}: {name} has shape {list(tensors[name].shape)}, expected that of {query}, "
                f"{list(tensors[query].shape)}; this is not a known architecture"
            )
    return torch.cat([tensors[name] for name in names])


def _is_packed_or_empty(name: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a tensor was packed with its block's query, or holds no weights."""
    query = re.sub(r"\.self_attn\.[kv]_proj\.", ".self_attn.q_proj.", name)
    return (query != name and query in tensors) or _NO_WEIGHTS.fullmatch(name) is not None
