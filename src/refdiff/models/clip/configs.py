"""Configs next to CLIP checkpoints, for what the tensors do not show: activation, heads, pixel statistics.

In: open_clip's `open_clip_config.json` or transformers' `config.json`. Out: `ClipConfig`. A setting that
would change the computation and that a plain CLIP does not have is refused, not skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from transformers import CLIPConfig

from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.models.configs import is_number, is_whole, one_line, read_json, section

OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"

Triple = tuple[float, float, float]

_MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "output_dict"}
_VISION_KEYS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "patch_dropout"}
_TEXT_KEYS = {
    *("context_length", "vocab_size", "width", "layers", "heads", "mlp_ratio", "pad_id", "eos_id"),
    "hf_tokenizer_name",  # checked by the size of its vocabulary: see `stacks.check_vocabulary`
}
"""Keys that are read here, show in the tensors, or do not affect a plain CLIP's results."""

_ACTIVATIONS = {"gelu": False, "quick_gelu": True}
"""transformers' `hidden_act` -> whether it is QuickGELU."""

_STATISTICS = ("image_mean", "image_std")
"""Settings of a preprocessor that are read."""

_LAYER_NORM_EPS = 1e-5
"""torch's default, which open_clip uses."""

_ARGMAX_EOS = 2
"""The `eos_token_id` with which transformers takes the highest id as the end, as OpenAI's code does."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A config that was found, in the terms of `ClipSizes`."""

    file: Path
    quick_gelu: bool | None
    """None: not stated; open_clip's default is then GELU."""
    vision_heads: int
    text_heads: int
    pixel_mean: Triple
    pixel_std: Triple
    stated: Mapping[str, int]
    """Sizes that the tensors show too, which must agree."""


def read_open_clip_config(file: Path) -> ClipConfig:
    """Read an `open_clip_config.json`.

    Raises:
        InputError: it is not one, or describes no plain CLIP.
    """
    document = read_json(file)
    model = section(document, "model_cfg", file)
    _check_plain(model, {}, _MODEL_KEYS, f"{file}: model_cfg")
    vision = _with_defaults(section(model, "vision_cfg", file), open_clip.CLIPVisionCfg, _VISION_KEYS, file)
    text = _with_defaults(section(model, "text_cfg", file), open_clip.CLIPTextCfg, _TEXT_KEYS, file)
    pixels = section(document, "preprocess_cfg", file) if "preprocess_cfg" in document else {}
    return ClipConfig(
        file=file,
        quick_gelu=_switch(model, "quick_gelu", file),
        vision_heads=_whole(vision, "width", file) // _whole(vision, "head_width", file),
        text_heads=_whole(text, "heads", file),
        pixel_mean=_triple(pixels, "mean", ClipSpec.pixel_mean, file),
        pixel_std=_triple(pixels, "std", ClipSpec.pixel_std, file, positive=True),
        stated={
            "embed_dim": _whole(model, "embed_dim", file),
            "image_size": _whole(vision, "image_size", file),
            "patch_size": _whole(vision, "patch_size", file),
            "vision_width": _whole(vision, "width", file),
            "vision_layers": _whole(vision, "layers", file),
            "text_width": _whole(text, "width", file),
            "text_layers": _whole(text, "layers", file),
            "context_length": _whole(text, "context_length", file),
            "vocabulary": _whole(text, "vocab_size", file),
        },
    )


def read_transformers_config(file: Path) -> ClipConfig:
    """Read the `config.json` of a CLIPModel, and the preprocessor's config if there is one next to it.

    Raises:
        InputError: it is not one, or it describes no plain CLIP.
    """
    document = read_json(file)
    kind = document.get("model_type")
    if kind != CLIPConfig.model_type:
        raise InputError(
            f"{file}: model_type is {kind!r}, expected {CLIPConfig.model_type!r}, a whole CLIPModel"
        )
    try:
        model = CLIPConfig.from_dict(dict(document)).to_dict()  # with defaults, older spellings included
    except Exception as error:  # its class differs between releases
        raise InputError(f"{file} is no config of a CLIPModel ({one_line(error)}); fetch it again") from error
    vision, text = section(model, "vision_config", file), section(model, "text_config", file)
    quick = _is_quick(vision, "vision_config", file)
    if _is_quick(text, "text_config", file) != quick:
        raise InputError(
            f"{file}: hidden_act is {vision['hidden_act']} in vision_config and {text['hidden_act']} in "
            "text_config, expected one for both towers"
        )
    vocabulary = _whole(text, "vocab_size", file)
    if text.get("eos_token_id") not in (_ARGMAX_EOS, vocabulary - 1):
        raise InputError(
            f"{file}: text_config.eos_token_id is {text.get('eos_token_id')!r}, expected the last id, "
            f"{vocabulary - 1}, as in CLIP's vocabulary"
        )
    pixels, pixel_file = _read_preprocessor(file.parent)
    return ClipConfig(
        file=file,
        quick_gelu=quick,
        vision_heads=_whole(vision, "num_attention_heads", file),
        text_heads=_whole(text, "num_attention_heads", file),
        pixel_mean=_triple(pixels, "image_mean", ClipSpec.pixel_mean, pixel_file),
        pixel_std=_triple(pixels, "image_std", ClipSpec.pixel_std, pixel_file, positive=True),
        stated={
            "embed_dim": _whole(model, "projection_dim", file),
            "image_size": _whole(vision, "image_size", file),
            "patch_size": _whole(vision, "patch_size", file),
            "vision_width": _whole(vision, "hidden_size", file),
            "vision_layers": _whole(vision, "num_hidden_layers", file),
            "vision_mlp": _whole(vision, "intermediate_size", file),
            "text_width": _whole(text, "hidden_size", file),
            "text_layers": _whole(text, "num_hidden_layers", file),
            "text_mlp": _whole(text, "intermediate_size", file),
            "context_length": _whole(text, "max_position_embeddings", file),
            "vocabulary": vocabulary,
        },
    )


def _is_quick(tower: Mapping[str, Any], name: str, file: Path) -> bool:
    """Return whether a tower computes QuickGELU; refuse one that open_clip cannot compute."""
    activation, eps = tower.get("hidden_act"), tower.get("layer_norm_eps")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise InputError(
            f"{file}: {name}.hidden_act is {activation!r}, expected one of {', '.join(_ACTIVATIONS)}"
        )
    if eps != _LAYER_NORM_EPS:
        raise InputError(f"{file}: {name}.layer_norm_eps is {eps!r}, expected {_LAYER_NORM_EPS}")
    return _ACTIVATIONS[activation]


def _read_preprocessor(folder: Path) -> tuple[Mapping[str, Any], Path]:
    """Return the image processor's settings and their file, which newer releases share with other settings.

    A file without pixel statistics is skipped: some hold only the name of a class.
    """
    alone, shared = folder / "preprocessor_config.json", folder / "processor_config.json"
    if alone.is_file():
        settings: Mapping[str, Any] = read_json(alone)
        if any(settings.get(name) is not None for name in _STATISTICS):
            return settings, alone
    if shared.is_file():
        document = read_json(shared)
        if document.get("image_processor") is not None:
            return section(document, "image_processor", shared), shared
    return {}, shared


def _with_defaults(settings: Mapping[str, Any], kind: Any, known: set[str], file: Path) -> dict[str, Any]:
    """Return all of open_clip's settings of a tower; refuse any not `known` that has not its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    _check_plain(settings, defaults, known, f"{file}: {kind.__name__}")
    return {**defaults, **settings}


def _check_plain(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], known: set[str], where: str
) -> None:
    for key, value in settings.items():
        default = defaults.get(key)
        if key not in known and value != default and (value or default):
            raise InputError(
                f"{where}.{key} is {value!r}, expected {default!r}: a CLIP with a ViT that reads its class "
                "token and a plain text tower"
            )


def _whole(settings: Mapping[str, Any], key: str, file: Path) -> int:
    """Return a size; a side may be given as a square."""
    value = settings.get(key)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not is_whole(value):
        raise InputError(f"{file}: {key} is {value!r}, expected a whole number: no ResNet, no oblong image")
    return value


def _switch(settings: Mapping[str, Any], key: str, file: Path) -> bool | None:
    value = settings.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{file}: {key} is {value!r}, expected true or false")
    return value


def _triple(
    settings: Mapping[str, Any], key: str, default: Triple, file: Path, *, positive: bool = False
) -> Triple:
    value = settings.get(key)
    if value is None:
        return default
    sound = isinstance(value, list) and len(value) == 3 and all(map(is_number, value))
    if not sound or (positive and min(value) <= 0):
        numbers = "finite numbers above 0" if positive else "finite numbers"
        raise InputError(f"{file}: {key} is {value!r}, expected three {numbers}: red, green, blue")
    red, green, blue = map(float, value)
    return red, green, blue
