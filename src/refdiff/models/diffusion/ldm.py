"""Single files in Stable Diffusion's original layout (.ckpt, .safetensors): all three modules in one file.

In: the file. Out: sizes, and the key of each of the modules' tensors, in the layout of
CompVis/latent-diffusion (UNet, VAE) and of transformers (SD 1.x) or open_clip (SD 2.x) for the text tower.
Tensors outside the three modules (averaged weights, the noise schedule, losses) and the VAE's decoder are
skipped; any other tensor that a module does not have is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from refdiff.contracts.spec import Prediction
from refdiff.errors import InputError
from refdiff.models.checkpoint import read_checkpoint
from refdiff.models.configs import Shapes
from refdiff.models.diffusion import ldm_claims, ldm_sizes
from refdiff.models.diffusion.ldm_sizes import OPEN_CLIP, TEXT, UNET, VAE
from refdiff.models.diffusion.sizes import DiffusionConfigs, build_text_encoder, build_unet, build_vae
from refdiff.models.diffusion.weights import FoundModel, UnetSet, Weights, choose_prediction

_NEVER_READ = {
    VAE: ("decoder.", "post_quant_conv.", "loss.", "model_ema."),
    OPEN_CLIP: ("text_projection", "logit_scale", "attn_mask"),
}
"""Prefix -> continuations of keys whose tensors the method does not use."""

_AVERAGED = "model_ema.diffusion_model"
"""Start of the averaged weights' keys, without dots behind the first. Source: latent-diffusion, ema.py."""

_BUFFER = "embeddings.position_ids"
"""End of the key of a constant, 0, 1, 2, ..., which old versions of transformers saved."""


def read_ldm(file: Path, prediction: Prediction | None, unet_set: UnetSet | None = None) -> FoundModel:
    """Describe a single-file checkpoint.

    Args:
        file: .safetensors, .ckpt, ...
        prediction: of the UNet, from the caller; None to follow the file. SD 1.x that says nothing predicts
            the noise.
        unet_set: of a file with both; None for the weights that are not averaged.

    Raises:
        InputError: the file cannot be read, belongs to another model, lacks a part or a tensor, or does not
            determine what its UNet predicts.
    """
    checkpoint = read_checkpoint(file)
    shapes = Shapes(file, checkpoint.tensors)
    ldm_claims.check_kind(shapes)
    stated = ldm_claims.read_prediction(checkpoint.tensors, checkpoint.metadata, file)
    second_generation = ldm_sizes.is_open_clip(shapes)
    ldm_claims.check_generation(checkpoint.metadata, file, second_generation=second_generation)
    configs = infer_configs(
        shapes, choose_prediction(stated, prediction, file, second_generation=second_generation)
    )
    both = shapes.any_below(_AVERAGED)
    if unet_set is not None and not both:
        raise InputError(
            f"got --diffusion-weights {unet_set}, but {file} holds one set of UNet weights (no key starts "
            f"with {_AVERAGED}) and does not say which; leave the option out"
        )
    averaged = unet_set == "ema"
    unet = partial(unet_keys, layers_per_block=configs.unet["layers_per_block"])
    weights = {
        "text_encoder": _text_weights(shapes, configs),
        "vae": Weights(
            file=file,
            build=partial(build_vae, configs),
            keys=_prefixed(VAE, vae_keys),
            belongs=_belongs_to(VAE),
        ),
        "unet": Weights(
            file=file,
            build=partial(build_unet, configs),
            keys=_averaged_keys(unet) if averaged else _prefixed(UNET, unet),
            belongs=_belongs_to(_AVERAGED if averaged else UNET),
        ),
    }
    return FoundModel(
        configs=configs, weights=weights, unet_set=("EMA" if averaged else "non-EMA") if both else None
    )


def infer_configs(shapes: Shapes, prediction: Prediction) -> DiffusionConfigs:
    """Infer the sizes of the model in a file.

    Raises:
        InputError: a tensor is missing.
    """
    configs = DiffusionConfigs(
        text=ldm_sizes.text_config(shapes),
        vae=ldm_sizes.vae_config(shapes),
        unet=ldm_sizes.unet_config(shapes),
        prediction=prediction,
        padding="end",
    )
    return replace(configs, padding="zero") if ldm_sizes.is_open_clip(shapes) else configs


def _text_weights(shapes: Shapes, configs: DiffusionConfigs) -> Weights:
    build = partial(build_text_encoder, configs)
    if not ldm_sizes.is_open_clip(shapes):
        keys = _prefixed(ldm_sizes.text_prefix(shapes), _without_tower)
        return Weights(file=shapes.file, build=build, keys=keys, belongs=_belongs_to(TEXT))
    unused = f"{OPEN_CLIP}transformer.resblocks.{configs.text['num_hidden_layers']}."
    belongs = _belongs_to(OPEN_CLIP)
    return Weights(
        file=shapes.file,
        build=build,
        keys=_prefixed(OPEN_CLIP, open_clip_keys),
        belongs=lambda key: belongs(key) and not key.startswith(unused),
    )


def _belongs_to(prefix: str) -> Callable[[str], bool]:
    never = tuple(f"{prefix}{rest}" for rest in _NEVER_READ.get(prefix, ()))
    return lambda key: key.startswith(prefix) and not key.startswith(never) and not key.endswith(_BUFFER)


def _prefixed(
    prefix: str, keys: Callable[[Sequence[str]], Mapping[str, str]]
) -> Callable[[Sequence[str], Collection[str]], Mapping[str, str]]:
    return lambda names, _: {name: f"{prefix}{key}" for name, key in keys(names).items()}


def _averaged_keys(
    keys: Callable[[Sequence[str]], Mapping[str, str]],
) -> Callable[[Sequence[str], Collection[str]], Mapping[str, str]]:
    return lambda names, _: {name: _AVERAGED + key.replace(".", "") for name, key in keys(names).items()}


def _without_tower(names: Sequence[str]) -> Mapping[str, str]:
    return {name: name.removeprefix(ldm_sizes.TEXT_TOWER) for name in names}


_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")

_VAE_ENDS = {"encoder.conv_norm_out": "encoder.norm_out"}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_VAE_BLOCK = re.compile(r"encoder\.down_blocks\.(\d+)\.(resnets|downsamplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"encoder\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")

_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_PROJECTION = re.compile(r"self_attn\.[qkv]_proj\.(weight|bias)")


def unet_keys(names: Sequence[str], layers_per_block: int) -> Mapping[str, str]:
    """Return the keys of a UNet2DConditionModel's tensors.

    The original numbers all blocks consecutively. A level is `layers_per_block` residual blocks and a
    downsampling on the way down, and one residual block more on the way up, where the last block ends with
    the upsampling.
    """
    attended = {name.partition(".attentions.")[0] for name in names if ".attentions." in name}
    return {name: _unet_key(name, layers_per_block + 1, attended) for name in names}


def _unet_key(name: str, stride: int, attended: set[str]) -> str:
    middle = _UNET_MIDDLE.fullmatch(name)
    if middle:
        kind, index, rest = middle.groups()
        position = 2 * int(index) + (kind == "attentions")
        return f"middle_block.{position}.{_unet_part(kind, rest)}"
    block = _UNET_BLOCK.fullmatch(name)
    if not block:
        return _rename_module(name, _UNET_ENDS)
    way, level, kind, index, rest = block.groups()
    first = int(level) * stride
    if kind == "downsamplers":
        return f"input_blocks.{first + stride}.0.{rest.replace('conv.', 'op.', 1)}"
    if kind == "upsamplers":
        part = 2 if f"{way}.{level}" in attended else 1
        return f"output_blocks.{first + stride - 1}.{part}.{rest}"
    # Input block 0 is the first convolution.
    place = f"input_blocks.{first + int(index) + 1}" if way == "down_blocks" else _output(first, index)
    return f"{place}.{int(kind == 'attentions')}.{_unet_part(kind, rest)}"


def _output(first: int, index: str) -> str:
    return f"output_blocks.{first + int(index)}"


def _unet_part(kind: str, rest: str) -> str:
    return _rename_module(rest, _UNET_RESNET) if kind == "resnets" else rest


def vae_keys(names: Sequence[str]) -> Mapping[str, str]:
    """Return the keys of the tensors of an AutoencoderKL's encoder and quant_conv."""
    return {name: _vae_key(name) for name in names}


def _vae_key(name: str) -> str:
    middle = _VAE_MIDDLE.fullmatch(name)
    if middle:
        kind, index, rest = middle.groups()
        if kind == "attentions":
            return f"encoder.mid.attn_{int(index) + 1}.{_rename_module(rest, _VAE_ATTENTION)}"
        return f"encoder.mid.block_{int(index) + 1}.{_vae_resnet(rest)}"
    block = _VAE_BLOCK.fullmatch(name)
    if not block:
        return _rename_module(name, _VAE_ENDS)
    level, kind, index, rest = block.groups()
    if kind == "downsamplers":
        return f"encoder.down.{level}.downsample.{rest}"
    return f"encoder.down.{level}.block.{index}.{_vae_resnet(rest)}"


def _vae_resnet(rest: str) -> str:
    return rest.replace("conv_shortcut.", "nin_shortcut.")


def open_clip_keys(names: Sequence[str]) -> Mapping[str, str]:
    """Return the keys of a CLIPTextModel's tensors in open_clip's tower; three names may share one key."""
    return {name: _open_clip_key(name.removeprefix("text_model.")) for name in names}


def _open_clip_key(name: str) -> str:
    block = _OPEN_CLIP_BLOCK.fullmatch(name)
    if not block:
        return _OPEN_CLIP_ENDS.get(name, name.replace("final_layer_norm.", "ln_final."))
    index, rest = block.groups()
    projection = _PROJECTION.fullmatch(rest)
    part = f"attn.in_proj_{projection[1]}" if projection else _rename_module(rest, _OPEN_CLIP_LAYER)
    return f"transformer.resblocks.{index}.{part}"


def _rename_module(name: str, parts: Mapping[str, str]) -> str:
    """Replace the module in front of `.weight` or `.bias` if `parts` has another name for it."""
    module, _, last = name.rpartition(".")
    return f"{parts.get(module, module)}.{last}"
