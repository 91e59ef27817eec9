"""CLIP from any usual checkpoint, as open_clip's module.

In: a file or folder: OpenAI's TorchScript archives and state dicts, open_clip's, or transformers' CLIPModel.
Out: a `Part` whose one component, "clip", is read when it is loaded; the file is fully checked before.

Whether a model computes GELU or QuickGELU does not show in its weights. OpenAI's archives say it by entries
of their own, a config beside the file says it, or the caller does; it is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import open_clip
import torch

from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.models.clip.configs import (
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
    ClipConfig,
    read_open_clip_config,
    read_transformers_config,
)
from refdiff.models.clip.sizes import ClipSizes, build_clip, clip_sizes, clip_spec
from refdiff.models.clip.transformers_layout import is_transformers, to_open_clip, written_by_transformers
from refdiff.models.files import FOLDER_WEIGHTS, read_checkpoint, trainer_prefix, weights_file
from refdiff.models.fitting import Part, check_kinds, fitted, stand_ins

ACTIVATIONS = ("gelu", "quick_gelu")
"""What `--clip-activation` may be."""

_OPENAI_ENTRIES = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Not weights. Source: openai/CLIP, model.py, build_model; no other archives have them."""

_CAUSAL_MASK = "attn_mask"
"""Nor is this: a traced open_clip.CLIP keeps the constant among its buffers."""

_FOREIGN = {
    "text_decoder.": "a CoCa model",
    "visual.layer1.": "a ResNet image tower",
    "visual.attnpool.": "a ResNet image tower",
    "visual.trunk.": "an image tower from timm (SigLIP, EVA, ConvNeXt)",
    "visual.blocks.": "an EVA image tower",
    "visual.attn_pool": "attentional pooling",
    "vision_model.head.": "a SigLIP model",
    "logit_bias": "a SigLIP model",
    "text.": "a text tower of a class of its own (custom_text)",
    "image_encoder.": "another model's image encoder (Segment Anything, MobileCLIP)",
}
"""Start of a tensor's name -> what it belongs to."""


@dataclass(frozen=True)
class _Arranged:
    """A checkpoint's tensors by open_clip's names."""

    tensors: Mapping[str, torch.Tensor]
    written_as: Callable[[str], str]
    """From open_clip's name to the file's."""
    from_transformers: bool
    from_openai: bool


def load_clip(source: Path, *, activation: str | None = None) -> Part[ClipSpec]:
    """Open a CLIP checkpoint.

    Args:
        source: a file, or a folder as the hub has it. A config beside the file is read too.
        activation: "gelu" or "quick_gelu", where nothing else says which; None to leave it to the file.

    Returns:
        The component "clip": an open_clip.CLIP in float32.

    Raises:
        InputError: the file cannot be read; is no CLIP with a ViT and a plain text tower of 77 tokens; lacks
            a tensor or has one too many; leaves the activation or the number of heads open; or file, config
            and argument contradict each other.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise InputError(f"got the activation {activation!r}, expected {' or '.join(ACTIVATIONS)}")
    file = weights_file(source, FOLDER_WEIGHTS, "CLIP")
    checkpoint = read_checkpoint(file)
    check_kinds(checkpoint.tensors, file)
    outline = _arranged({name: tensor.to("meta") for name, tensor in checkpoint.tensors.items()}, file)
    _refuse_foreign(outline, file)
    config = _config_beside(file, from_transformers=outline.from_transformers)
    sizes = clip_sizes(
        outline.tensors,
        file,
        quick_gelu=_is_quick(file, activation, config, from_openai=outline.from_openai),
        config=config,
        written_as=outline.written_as,
    )
    # Every name and shape is checked here, without a byte of weights.
    _fitted(replace(outline, tensors=stand_ins(outline.tensors)), sizes, file)
    return Part(
        spec=clip_spec(sizes),
        loaders={"clip": partial(_load, file, sizes)},
        sources={"clip": checkpoint.sha256},
        vocabulary=sizes.vocabulary,
    )


def _load(file: Path, sizes: ClipSizes) -> open_clip.CLIP:
    return _fitted(_arranged(read_checkpoint(file).tensors, file), sizes, file)


def _fitted(arranged: _Arranged, sizes: ClipSizes, file: Path) -> open_clip.CLIP:
    return fitted(partial(build_clip, sizes), arranged.tensors, file=file, written_as=arranged.written_as)


def _arranged(tensors: Mapping[str, torch.Tensor], file: Path) -> _Arranged:
    trainer = trainer_prefix(tensors)
    tensors = {name[len(trainer) :]: tensor for name, tensor in tensors.items()}
    if is_transformers(tensors):
        return _Arranged(
            to_open_clip(tensors, file),
            lambda name: trainer + written_by_transformers(name),
            from_transformers=True,
            from_openai=False,
        )
    from_openai = tensors.keys() >= _OPENAI_ENTRIES
    extra = {_CAUSAL_MASK} | (_OPENAI_ENTRIES if from_openai else frozenset())
    tensors = {name: tensor for name, tensor in tensors.items() if name not in extra}
    return _Arranged(tensors, lambda name: trainer + name, from_transformers=False, from_openai=from_openai)


def _refuse_foreign(arranged: _Arranged, file: Path) -> None:
    """Refuse the image-and-text models that are known and are no plain CLIPs."""
    for start, what in _FOREIGN.items():
        name = next((name for name in arranged.tensors if name.startswith(start)), None)
        if name is not None:
            raise InputError(
                f"{file}: tensor {arranged.written_as(name)} belongs to {what}, expected a CLIP with a ViT "
                "that reads its class token and a plain text tower, such as ViT-B/32, B/16 or L/14"
            )


def _config_beside(file: Path, *, from_transformers: bool) -> ClipConfig | None:
    name = TRANSFORMERS_CONFIG if from_transformers else OPEN_CLIP_CONFIG
    path = file.parent / name
    if not path.is_file():
        return None
    return read_transformers_config(path) if from_transformers else read_open_clip_config(path)


def _is_quick(file: Path, activation: str | None, config: ClipConfig | None, *, from_openai: bool) -> bool:
    """Whether the model was trained with QuickGELU, by everyone who says so."""
    said: dict[str, bool] = {}
    if from_openai:
        said[f"{file} (its entry input_resolution is OpenAI's)"] = True
    if config is not None and config.quick_gelu is not None:
        said[str(config.file)] = config.quick_gelu
    if activation is not None:
        said["--clip-activation"] = activation == "quick_gelu"
    if not said and config is not None:
        return False  # open_clip's own default
    if not said:
        raise InputError(
            f"{file} does not say whether it was trained with GELU or QuickGELU, and neither does a config "
            "beside it; pass --clip-activation quick_gelu (OpenAI's weights) or gelu (most of open_clip's)"
        )
    if len(set(said.values())) > 1:
        views = " but ".join(f"{who} says {ACTIVATIONS[quick]}" for who, quick in said.items())
        raise InputError(f"{views}; leave out what is wrong")
    return next(iter(said.values()))
