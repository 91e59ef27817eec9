"""What the original Stable Diffusion code calls the tensors of diffusers' and transformers' modules.

In: names as a module has them. Out: name -> key behind the component's prefix, in the layout of CompVis/
latent-diffusion (UNet, VAE) and open_clip (the text tower of SD 2.x). Pure functions on names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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
    """Keys of a UNet2DConditionModel's tensors.

    The original numbers its blocks through. A level is `layers_per_block` residual blocks and a downsampling
    on the way down, and one residual block more on the way up, where the last block ends with the upsampling.
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
        return _replaced(name, _UNET_ENDS)
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
    return _replaced(rest, _UNET_RESNET) if kind == "resnets" else rest


def vae_keys(names: Sequence[str]) -> Mapping[str, str]:
    """Keys of an AutoencoderKL's encoder and quant_conv."""
    return {name: _vae_key(name) for name in names}


def _vae_key(name: str) -> str:
    middle = _VAE_MIDDLE.fullmatch(name)
    if middle:
        kind, index, rest = middle.groups()
        if kind == "attentions":
            return f"encoder.mid.attn_{int(index) + 1}.{_replaced(rest, _VAE_ATTENTION)}"
        return f"encoder.mid.block_{int(index) + 1}.{_vae_resnet(rest)}"
    block = _VAE_BLOCK.fullmatch(name)
    if not block:
        return _replaced(name, _VAE_ENDS)
    level, kind, index, rest = block.groups()
    if kind == "downsamplers":
        return f"encoder.down.{level}.downsample.{rest}"
    return f"encoder.down.{level}.block.{index}.{_vae_resnet(rest)}"


def _vae_resnet(rest: str) -> str:
    return rest.replace("conv_shortcut.", "nin_shortcut.")


def open_clip_keys(names: Sequence[str]) -> Mapping[str, str]:
    """Keys of a CLIPTextModel's tensors in open_clip's text tower; three names may share one key."""
    return {name: _open_clip_key(name.removeprefix("text_model.")) for name in names}


def _open_clip_key(name: str) -> str:
    block = _OPEN_CLIP_BLOCK.fullmatch(name)
    if not block:
        return _OPEN_CLIP_ENDS.get(name, name.replace("final_layer_norm.", "ln_final."))
    index, rest = block.groups()
    projection = _PROJECTION.fullmatch(rest)
    part = f"attn.in_proj_{projection[1]}" if projection else _replaced(rest, _OPEN_CLIP_LAYER)
    return f"transformer.resblocks.{index}.{part}"


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    """The name with the module part in front of `.weight` or `.bias` renamed, if it has another name."""
    module, _, last = name.rpartition(".")
    return f"{parts.get(module, module)}.{last}"
