"""The sizes of a Stable Diffusion model, inferred from the shapes in a file of the original layout.

In: shapes by key. Out: configs. The shapes do not determine the number of groups (always 32 here) nor of
heads: those follow the published generations, 8 heads where `proj_in` is a convolution (SD 1.x), heads of 64
channels where it is linear (SD 2.x).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from refdiff.errors import InputError
from refdiff.models.configs import Shapes
from refdiff.models.diffusion.sizes import Config
from refdiff.models.diffusion.taps import CROSS_DOWN, CROSS_MID, CROSS_UP

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."
TEXT_TOWER = "text_model."
"""Follows `TEXT` in the original files, but not in those written with newer transformers."""
OPEN_CLIP = "cond_stage_model.model."

HEADS_SD1 = 8
HEAD_WIDTH = 64
"""Channels per head of SD 2.x's UNet and of CLIP text towers. Source: v2-inference.yaml; openai/CLIP."""

UNUSED_TOWER_LAYERS = 1
"""SD 2.x reads the penultimate layer of its text tower. Source: v2-inference.yaml, `layer: "penultimate"`."""
TRIMMED_TOWER = 23
"""Blocks of SD 2.x's tower in files that diffusers' script wrote, without the unused one."""


@dataclass(frozen=True)
class _Level:
    channels: int
    layers: int
    attended: bool


def unet_config(shapes: Shapes) -> Config:
    """Infer the arguments of UNet2DConditionModel.

    Raises:
        InputError: a tensor is missing, or the levels differ in their number of blocks.
    """
    levels = _levels(shapes)
    if len({level.layers for level in levels}) != 1:
        layers = [level.layers for level in levels]
        raise InputError(
            f"{shapes.file}: the UNet's levels have {layers} residual blocks, expected the same number in "
            f"each; a tensor of {UNET}input_blocks is missing, or this is not a known architecture"
        )
    attended = [level.attended for level in levels]
    widths = tuple(level.channels for level in levels)
    first = _first_attention(shapes)
    linear = len(shapes.tensors[f"{first}proj_in.weight"].shape) == 2
    middle = shapes.any_below(f"{UNET}middle_block.")
    return {
        "in_channels": shapes.shape(f"{UNET}input_blocks.0.0.weight", 4)[1],
        "out_channels": shapes.shape(f"{UNET}out.2.weight", 4)[0],
        "down_block_types": tuple(CROSS_DOWN if cross else "DownBlock2D" for cross in attended),
        "mid_block_type": CROSS_MID if middle else None,
        "up_block_types": tuple(CROSS_UP if cross else "UpBlock2D" for cross in reversed(attended)),
        "block_out_channels": widths,
        "layers_per_block": levels[0].layers,
        "cross_attention_dim": shapes.shape(f"{first}transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "attention_head_dim": tuple(max(1, w // HEAD_WIDTH) for w in widths) if linear else HEADS_SD1,
        "use_linear_projection": linear,
    }


def _levels(shapes: Shapes) -> list[_Level]:
    """Return the levels on the way down: runs of residual blocks between downsamplings."""
    runs: list[list[str]] = [[]]
    for index in range(1, shapes.count(f"{UNET}input_blocks")):
        block = f"{UNET}input_blocks.{index}."
        if shapes.any_below(f"{block}0.op."):
            runs.append([])
        else:
            runs[-1].append(block)
    return [_level(shapes, run) for run in runs]


def _level(shapes: Shapes, blocks: list[str]) -> _Level:
    if not blocks:
        return _Level(0, 0, attended=False)
    channels = shapes.shape(f"{blocks[0]}0.out_layers.3.weight", 4)[0]
    attended = shapes.any_below(f"{blocks[0]}1.")
    return _Level(channels, len(blocks), attended)


def _first_attention(shapes: Shapes) -> str:
    """Return the key prefix of the first transformer on the way down, such as `...input_blocks.1.1.`."""
    pattern = re.compile(re.escape(UNET) + r"input_blocks\.\d+\.1\.(?=proj_in\.weight$)")
    found = min((match[0] for key in shapes.tensors if (match := pattern.match(key))), default=None)
    if found is None:
        raise InputError(
            f"{shapes.file}: no key {UNET}input_blocks.N.1.proj_in.weight, expected a UNet with "
            "cross-attention; use a text-to-image model of Stable Diffusion 1.x or 2.x"
        )
    return found


def vae_config(shapes: Shapes) -> Config:
    """Infer the arguments of AutoencoderKL.

    Raises:
        InputError: a tensor is missing.
    """
    down = f"{VAE}encoder.down"
    levels = shapes.count(down)
    widths = (shapes.shape(f"{down}.{level}.block.0.conv2.weight", 4)[0] for level in range(levels))
    return {
        "in_channels": shapes.shape(f"{VAE}encoder.conv_in.weight", 4)[1],
        "out_channels": 3,  # of the decoder, which is not built
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(widths),
        "layers_per_block": max(1, shapes.count(f"{down}.0.block")),
        "latent_channels": shapes.shape(f"{VAE}quant_conv.weight", 4)[0] // 2,
    }


def is_open_clip(shapes: Shapes) -> bool:
    """Return whether the text encoder is open_clip's (SD 2.x), not transformers' (SD 1.x)."""
    return shapes.any_below(OPEN_CLIP)


def text_config(shapes: Shapes) -> Config:
    """Infer the arguments of CLIPTextConfig.

    Raises:
        InputError: a tensor is missing.
    """
    if is_open_clip(shapes):
        base, first = OPEN_CLIP, f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight"
        rows, width = shapes.shape(f"{base}token_embedding.weight", 2)
        positions = shapes.shape(f"{base}positional_embedding", 2)[0]
        layers, activation = used_blocks(shapes), "gelu"
    else:
        base = text_prefix(shapes)
        first = f"{base}encoder.layers.0.mlp.fc1.weight"
        rows, width = shapes.shape(f"{base}embeddings.token_embedding.weight", 2)
        positions = shapes.shape(f"{base}embeddings.position_embedding.weight", 2)[0]
        layers, activation = shapes.count(f"{base}encoder.layers"), "quick_gelu"
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": shapes.shape(first, 2)[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": positions,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }


def text_prefix(shapes: Shapes) -> str:
    """Return the prefix of the text encoder's keys in the transformers layout."""
    nested = f"{TEXT}{TEXT_TOWER}"
    return nested if shapes.any_below(nested) else TEXT


def used_blocks(shapes: Shapes) -> int:
    """Return how many blocks of open_clip's text tower are used."""
    blocks = shapes.count(f"{OPEN_CLIP}transformer.resblocks")
    return blocks if blocks == TRIMMED_TOWER else max(1, blocks - UNUSED_TOWER_LAYERS)
