"""Stable Diffusion as a diffusers folder: model_index.json, and a folder for each part.

In: the folder. Out: sizes, and where each module's weights are. Configs are read as diffusers reads them: a
missing field has its class's default. Weights are read by this package, which names a missing or surplus
tensor and holds none twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from refdiff.contracts.spec import Padding, Prediction
from refdiff.errors import InputError
from refdiff.models.configs import read_json
from refdiff.models.diffusion.diffusers_configs import module_config, read_schedule, text_config
from refdiff.models.diffusion.sizes import (
    SCALING_FACTOR,
    UNET_FIELDS,
    DiffusionConfigs,
    build_text_encoder,
    build_unet,
)
from refdiff.models.diffusion.vae import VAE_CLASSES, FoundVae, read_vae_folder
from refdiff.models.diffusion.weights import FoundModel, UnetSet, Weights, choose_prediction
from refdiff.models.hub.names import DIFFUSERS_INDEX, part_weights

_CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "vae": VAE_CLASSES,
    "unet": ("UNet2DConditionModel",),
}
_FOREIGN_PARTS = ("text_encoder_2", "text_encoder_3", "transformer", "prior")
"""Parts of SDXL, SD 3, Flux and others; pipelines without one may list it as nulls."""

_PAD_TOKENS: Mapping[str, Padding] = {"<|endoftext|>": "end", "!": "zero"}
"""Token 0 of CLIP's vocabulary is "!"."""

_TOWER = "text_model."
"""Prefix of a text encoder's names in transformers 4, in files and in memory; transformers 5 has none."""


def read_folder(
    folder: Path,
    prediction: Prediction | None,
    unet_set: UnetSet | None = None,
    *,
    vae: FoundVae | None = None,
) -> FoundModel:
    """Describe a diffusers folder.

    Args:
        folder: with a model_index.json.
        prediction: of the UNet, from the caller; None to follow the folder.
        unet_set: which of its two files of UNet weights; None or "ema" for the one without a suffix.
        vae: an autoencoder in place of the folder's, which may then be missing.

    Raises:
        InputError: a part is missing, damaged or of another model, or the folder states another prediction.
    """
    _check_index(folder)
    files = {part: folder / part / "config.json" for part in _CLASSES if vae is None or part != "vae"}
    documents = {part: _document(file, part) for part, file in files.items()}
    vae = vae or read_vae_folder(folder / "vae", documents["vae"])
    unet = module_config(UNet2DConditionModel, documents["unet"], UNET_FIELDS, files["unet"])
    schedule_file = folder / "scheduler" / "scheduler_config.json"
    schedule = read_schedule(schedule_file)
    configs = DiffusionConfigs(
        text=text_config(documents["text_encoder"], files["text_encoder"]),
        vae=vae.config,
        unet=unet,
        prediction=choose_prediction(
            schedule.prediction, prediction, schedule_file, second_generation=unet["use_linear_projection"]
        ),
        padding=_padding(folder / "tokenizer"),
        scaling_factor=vae.scaling_factor or SCALING_FACTOR,
        train_timesteps=schedule.train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
    )
    builders = {"text_encoder": build_text_encoder, "unet": build_unet}
    special: Mapping[str, dict[str, Any]] = {
        "text_encoder": {"keys": _text_keys, "belongs": _not_in(("embeddings.position_ids",))},
        "unet": {},
    }
    weights = {
        name: Weights(
            file=_weight_file(folder, name, non_ema=name == "unet" and unet_set == "non-ema"),
            build=partial(build, configs),
            sized_by=files[name],
            **special[name],
        )
        for name, build in builders.items()
    } | {"vae": vae.weights(configs)}
    label = {"ema": "EMA", "non-ema": "non-EMA", None: None}[unet_set]
    return FoundModel(configs=configs, weights=weights, unet_set=label)


def _check_index(folder: Path) -> None:
    path = folder / DIFFUSERS_INDEX
    if not path.is_file():
        raise InputError(
            f"{folder} has no {DIFFUSERS_INDEX}, expected a diffusers folder; name one, or a single file"
        )
    index = read_json(path)
    for part in _FOREIGN_PARTS:
        value = index.get(part)
        if isinstance(value, list) and any(value):
            raise InputError(
                f"{path} names a part {part!r} (of SDXL, SD 3 or another family), expected a text-to-image "
                "model of Stable Diffusion 1.x or 2.x; use one of those"
            )


def _document(path: Path, part: str) -> Mapping[str, Any]:
    """Read a part's config.json, and check its class."""
    if not path.is_file():
        raise InputError(f"{path.parent.parent} lacks {part}/config.json; fetch the whole model")
    document = read_json(path)
    stated = document.get("architectures") or []
    kinds = {"_class_name": [document.get("_class_name")]}
    kinds["architectures"] = stated if isinstance(stated, list) else [stated]
    for field, found in kinds.items():
        wrong = next((kind for kind in found if kind not in (None, *_CLASSES[part])), None)
        if wrong is not None:
            raise InputError(
                f"{path}: {field} names {wrong!r}, expected {' or '.join(map(repr, _CLASSES[part]))}; "
                "use Stable Diffusion 1.x or 2.x"
            )
    return document


def _padding(tokenizer: Path) -> Padding:
    """Return what the tokenizer pads prompts with."""
    files = [tokenizer / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    found = [path for path in files if path.is_file()]
    if not found:
        raise InputError(
            f"{tokenizer} has neither {files[0].name} nor {files[1].name}, expected one that names the "
            "padding token; fetch the whole model"
        )
    for path in found:
        token = read_json(path).get("pad_token")
        content = token.get("content") if isinstance(token, dict) else token
        if content is None:
            continue
        if not isinstance(content, str) or content not in _PAD_TOKENS:
            raise InputError(
                f"{path}: pad_token is {content!r}, expected one of {list(_PAD_TOKENS)}; "
                "use Stable Diffusion 1.x or 2.x"
            )
        return _PAD_TOKENS[content]
    return "end"  # the default of transformers' CLIPTokenizer


def _weight_file(folder: Path, part: str, *, non_ema: bool) -> Path:
    """Return the part's weight file: the first of `part_weights` that is there."""
    names = part_weights(part, non_ema=non_ema)
    found = next((path for name in names if (path := folder / part / name).is_file()), None)
    if found is None:
        raise InputError(
            f"{folder / part} has no weights, expected one of {', '.join(names)}; fetch the whole model"
            + (", or pass --diffusion-weights ema" if non_ema else "")
        )
    return found


def _not_in(parts: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda key: not key.removeprefix(_TOWER).startswith(parts)


def _text_keys(names: Sequence[str], present: Collection[str]) -> Mapping[str, str]:
    prefix = _TOWER if any(key.startswith(_TOWER) for key in present) else ""
    return {name: f"{prefix}{name.removeprefix(_TOWER)}" for name in names}
