"""Single files in Stable Diffusion's original layout (.ckpt, .safetensors): all three modules in one file.

In: the file. Out: sizes, and which of its tensors make up each module. What lies outside the three modules
(averaged weights, the noise schedule, losses) and the VAE's decoder are passed over; anything else has to
find its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from refdiff.contracts.spec import Prediction
from refdiff.errors import InputError
from refdiff.export.checkpoints.diffusion import ldm_keys, ldm_sizes
from refdiff.export.checkpoints.diffusion.ldm_sizes import OPEN_CLIP, TEXT, UNET, VAE, Shapes
from refdiff.export.checkpoints.diffusion.prediction import told_prediction
from refdiff.export.checkpoints.diffusion.sizes import (
    DiffusionConfigs,
    build_text_encoder,
    build_unet,
    build_vae,
)
from refdiff.export.checkpoints.diffusion.weights import FoundModel, Weights
from refdiff.export.checkpoints.files import read_checkpoint

_OTHER_MODELS = {
    "conditioner.embedders.": "SDXL, which has two text encoders",
    f"{UNET}label_emb.": "SDXL or a class-conditional model, whose UNet wants more than a text",
    f"{UNET}joint_blocks.": "SD 3, which has no UNet",
    f"{UNET}double_blocks.": "Flux, which has no UNet",
    "joint_blocks.": "SD 3, which has no UNet",
    "double_blocks.": "Flux, which has no UNet",
}
"""Start of a key -> whose it is."""

_NEVER_READ = {
    VAE: ("decoder.", "post_quant_conv.", "loss.", "model_ema."),
    OPEN_CLIP: ("text_projection", "logit_scale", "attn_mask"),
}
"""Prefix -> what follows it in tensors the method has no use for."""

_BUFFER = "embeddings.position_ids"
"""0, 1, 2, ...: a constant that old versions of transformers saved."""


def read_ldm(file: Path, prediction: Prediction | None) -> FoundModel:
    """Describe a single-file checkpoint.

    Args:
        file: .safetensors, .ckpt, ...
        prediction: of the UNet; None where it is the one all models of that make have.

    Raises:
        InputError: the file cannot be read, is another model's, lacks a part or a tensor, or leaves open what
            its UNet predicts.
    """
    tensors = read_checkpoint(file).tensors
    shapes = Shapes(file, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    _refuse_other_models(shapes)
    _check_parts(shapes)
    configs = infer_configs(shapes, prediction)
    weights = {
        "text_encoder": _text_weights(shapes, configs),
        "vae": Weights(
            file=file,
            build=partial(build_vae, configs),
            keys=_behind(VAE, ldm_keys.vae_keys),
            belongs=_wanted(VAE),
        ),
        "unet": Weights(
            file=file,
            build=partial(build_unet, configs),
            keys=_behind(
                UNET, partial(ldm_keys.unet_keys, layers_per_block=configs.unet["layers_per_block"])
            ),
            belongs=_wanted(UNET),
        ),
    }
    return FoundModel(configs=configs, weights=weights)


def infer_configs(shapes: Shapes, prediction: Prediction | None) -> DiffusionConfigs:
    """The sizes of the model in a file.

    Raises:
        InputError: a tensor is missing, or it cannot be told what the UNet predicts.
    """
    second_generation = ldm_sizes.is_open_clip(shapes)
    configs = DiffusionConfigs(
        text=ldm_sizes.text_config(shapes),
        vae=ldm_sizes.vae_config(shapes),
        unet=ldm_sizes.unet_config(shapes),
        prediction=told_prediction(prediction, shapes.file, second_generation=second_generation),
        padding="end",
    )
    return replace(configs, padding="zero") if second_generation else configs


def _text_weights(shapes: Shapes, configs: DiffusionConfigs) -> Weights:
    build = partial(build_text_encoder, configs)
    if not ldm_sizes.is_open_clip(shapes):
        keys = _behind(ldm_sizes.text_prefix(shapes), _without_tower)
        return Weights(file=shapes.file, build=build, keys=keys, belongs=_wanted(TEXT))
    unused = f"{OPEN_CLIP}transformer.resblocks.{configs.text['num_hidden_layers']}."
    wanted = _wanted(OPEN_CLIP)
    return Weights(
        file=shapes.file,
        build=build,
        keys=_behind(OPEN_CLIP, ldm_keys.open_clip_keys),
        belongs=lambda key: wanted(key) and not key.startswith(unused),
    )


def _wanted(prefix: str) -> Callable[[str], bool]:
    never = tuple(f"{prefix}{rest}" for rest in _NEVER_READ.get(prefix, ()))
    return lambda key: key.startswith(prefix) and not key.startswith(never) and not key.endswith(_BUFFER)


def _behind(
    prefix: str, keys: Callable[[Sequence[str]], Mapping[str, str]]
) -> Callable[[Sequence[str], Collection[str]], Mapping[str, str]]:
    return lambda names, _: {name: f"{prefix}{key}" for name, key in keys(names).items()}


def _without_tower(names: Sequence[str]) -> Mapping[str, str]:
    return {name: name.removeprefix(ldm_sizes.TEXT_TOWER) for name in names}


def _refuse_other_models(shapes: Shapes) -> None:
    for start, whose in _OTHER_MODELS.items():
        key = next((key for key in shapes.by_key if key.startswith(start)), None)
        if key is not None:
            raise InputError(
                f"{shapes.file}: {key} belongs to {whose}; use a checkpoint of Stable Diffusion 1.x or 2.x"
            )


def _check_parts(shapes: Shapes) -> None:
    parts = (("UNet", (UNET,)), ("VAE", (VAE,)), ("text encoder", (TEXT, OPEN_CLIP)))
    for part, prefixes in parts:
        if not any(key.startswith(prefixes) for key in shapes.by_key):
            raise InputError(
                f"{shapes.file} holds no {part}: no key starts with {' or '.join(prefixes)}; use a file with "
                "all parts in Stable Diffusion's original layout, or a diffusers folder"
            )
