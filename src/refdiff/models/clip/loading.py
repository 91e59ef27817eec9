"""CLIP from any usual checkpoint, as open_clip's module.

In: a file or folder: OpenAI's TorchScript archives and state dicts, open_clip's, or transformers' CLIPModel.
Out: a `Part` with one component, "clip", whose weights are read when it is loaded; all names and shapes are
checked before.

The weights do not show whether a model computes GELU or QuickGELU. Entries of OpenAI's archives, a config
next to the file, or the caller state it; it is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import open_clip
import torch

from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.models.checkpoint import find_weights, read_checkpoint, split_trainer_prefix
from refdiff.models.clip.configs import (
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
    ClipConfig,
    read_open_clip_config,
    read_transformers_config,
)
from refdiff.models.clip.sizes import ClipSizes, build_clip, clip_spec, infer_clip_sizes
from refdiff.models.fitting import Part, check_dtypes, fit_module, make_stand_ins
from refdiff.models.hub.names import FOLDER_WEIGHTS

ACTIVATIONS = ("gelu", "quick_gelu")
"""Values of `--clip-activation`; the index says whether it is QuickGELU."""

_OPENAI_ENTRIES = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries that are no weights. Source: openai/CLIP, model.py, build_model; no other archives have them."""

_CAUSAL_MASK = "attn_mask"
"""No weight either: a traced open_clip.CLIP keeps this constant among its buffers."""

_FOREIGN = {
    "text_decoder.": "a CoCa model",
    "visual.layer1.": "a ResNet image tower",
    "visual.attnpool.": "a ResNet image tower",
    "visual.trunk.": "an image tower from timm (SigLIP, EVA, ConvNeXt)",
    "visual.blocks.": "an EVA image tower",
    "visual.attn_pool": "attentional pooling",
    "vision_model.head.": "a SigLIP model",
    "logit_bias": "a SigLIP model",
    "text.": "a text tower of another class (custom_text)",
    "image_encoder.": "another model's image encoder (Segment Anything, MobileCLIP)",
}
"""Start of a tensor's name -> the architecture it belongs to."""


@dataclass(frozen=True)
class _OpenClipTensors:
    """A checkpoint's tensors by open_clip's names."""

    tensors: Mapping[str, torch.Tensor]
    written_as: Callable[[str], str]
    """From open_clip's name of a tensor to the file's."""
    from_transformers: bool
    from_openai: bool


def load_clip(source: Path, *, activation: str | None = None) -> Part[ClipSpec]:
    """Open a CLIP checkpoint.

    Args:
        source: a file, or a folder as on the hub. A config next to the file is read too.
        activation: "gelu" or "quick_gelu", if neither file nor config states it; None otherwise.

    Returns:
        The component "clip": an open_clip.CLIP in float32.

    Raises:
        InputError: the file cannot be read; is no CLIP with a ViT and a plain text tower of 77 tokens; has a
            missing or surplus tensor; does not determine the activation or the number of heads; or file,
            config and argument contradict each other.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise InputError(f"got the activation {activation!r}, expected {' or '.join(ACTIVATIONS)}")
    file = find_weights(source, FOLDER_WEIGHTS, "CLIP")
    checkpoint = read_checkpoint(file)
    check_dtypes(checkpoint.tensors, file)
    outline = _arrange({name: tensor.to("meta") for name, tensor in checkpoint.tensors.items()}, file)
    _refuse_foreign(outline, file)
    config = _read_config(file, from_transformers=outline.from_transformers)
    sizes = infer_clip_sizes(
        outline.tensors,
        file,
        quick_gelu=_is_quick(file, activation, config, from_openai=outline.from_openai),
        config=config,
        written_as=outline.written_as,
    )
    # Checks every name and shape, and reads no weights.
    _fit(replace(outline, tensors=make_stand_ins(outline.tensors)), sizes, file)
    return Part(
        spec=clip_spec(sizes),
        loaders={"clip": partial(_load, file, sizes)},
        sources={"clip": checkpoint.sha256},
        vocabulary=sizes.vocabulary,
    )


def _load(file: Path, sizes: ClipSizes) -> open_clip.CLIP:
    return _fit(_arrange(read_checkpoint(file).tensors, file), sizes, file)


def _fit(arranged: _OpenClipTensors, sizes: ClipSizes, file: Path) -> open_clip.CLIP:
    return fit_module(partial(build_clip, sizes), arranged.tensors, file=file, written_as=arranged.written_as)


def _arrange(tensors: Mapping[str, torch.Tensor], file: Path) -> _OpenClipTensors:
    trainer, tensors = split_trainer_prefix(tensors)
    if is_transformers(tensors):
        return _OpenClipTensors(
            to_open_clip(tensors, file),
            lambda name: trainer + written_by_transformers(name),
            from_transformers=True,
            from_openai=False,
        )
    tensors, written_as = _from_tiny_clip(tensors)
    from_openai = tensors.keys() >= _OPENAI_ENTRIES
    extra = {_CAUSAL_MASK} | (_OPENAI_ENTRIES if from_openai else frozenset())
    tensors = {name: tensor for name, tensor in tensors.items() if name not in extra}
    return _OpenClipTensors(
        tensors, lambda name: trainer + written_as(name), from_transformers=False, from_openai=from_openai
    )


_TINY_CLIP = {"logit_scale": "_logit_scale.", "visual.": "_image_encoder.", "": "_text_encoder."}
"""Start of open_clip's name of a tensor -> the module in which TinyCLIP's training code holds it."""


def _from_tiny_clip(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[Mapping[str, torch.Tensor], Callable[[str], str]]:
    """Return the tensors of an original TinyCLIP file by open_clip's names, and the way back.

    Any other state dict stays as it is. On the hub TinyCLIP has the layout of transformers.
    """
    if not tensors or not all(name.startswith(tuple(_TINY_CLIP.values())) for name in tensors):
        return tensors, lambda name: name
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items()}, _written_by_tiny_clip


def _written_by_tiny_clip(name: str) -> str:
    return next(module for start, module in _TINY_CLIP.items() if name.startswith(start)) + name


def _refuse_foreign(arranged: _OpenClipTensors, file: Path) -> None:
    """Refuse known image-and-text models that are no plain CLIPs."""
    for start, what in _FOREIGN.items():
        name = next((name for name in arranged.tensors if name.startswith(start)), None)
        if name is not None:
            raise InputError(
                f"{file}: tensor {arranged.written_as(name)} belongs to {what}, expected a CLIP with a ViT "
                "that reads its class token and a plain text tower, such as ViT-B/32, B/16 or L/14"
            )


def _read_config(file: Path, *, from_transformers: bool) -> ClipConfig | None:
    name = TRANSFORMERS_CONFIG if from_transformers else OPEN_CLIP_CONFIG
    path = file.parent / name
    if not path.is_file():
        return None
    return read_transformers_config(path) if from_transformers else read_open_clip_config(path)


def _is_quick(file: Path, activation: str | None, config: ClipConfig | None, *, from_openai: bool) -> bool:
    """Return whether the model was trained with QuickGELU; all sources that state it must agree."""
    stated: dict[str, bool] = {}
    if from_openai:
        stated[f"{file} (its entry input_resolution is OpenAI's)"] = True
    if config is not None and config.quick_gelu is not None:
        stated[str(config.file)] = config.quick_gelu
    if activation is not None:
        stated["--clip-activation"] = activation == "quick_gelu"
    if not stated and config is not None:
        return False  # open_clip's own default
    if not stated:
        raise InputError(
            f"{file} does not state whether it was trained with GELU or QuickGELU, and neither does a config "
            "next to it; pass --clip-activation quick_gelu (OpenAI's weights) or gelu (most of open_clip's)"
        )
    if len(set(stated.values())) > 1:
        views = " but ".join(f"{source} says {ACTIVATIONS[quick]}" for source, quick in stated.items())
        raise InputError(f"{views}; leave out what is wrong")
    return next(iter(stated.values()))


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
