"""CLIP's sizes: inferred from a checkpoint's tensors, and the module and the spec that follow from them.

In: a state dict by open_clip's names (meta tensors suffice), and the config next to it. Out: `ClipSizes`.
Only the plain model is known: a ViT that reads its class token, and a causal text tower that reads its end
token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch

from refdiff.contracts.spec import ClipSpec, ModelSpec
from refdiff.errors import InputError
from refdiff.models.clip.configs import ClipConfig
from refdiff.models.configs import Shapes

HEAD_WIDTH = 64
"""Source: openai/CLIP, model.py, and the default of open_clip's configs."""

_WIDEST_BY_RULE = 1024
"""open_clip's wider image towers (H, g, bigG, e) have wider heads, which the tensors do not show."""


@dataclass(frozen=True, kw_only=True)
class ClipSizes:
    """Everything that distinguishes one plain CLIP from another."""

    embed_dim: int
    """Width of the joint embedding."""
    image_size: int
    """Side of the square image in px."""
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    """Width between a block's two linear layers, usually four times the tower's."""
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp: int
    context_length: int = ModelSpec.context_length
    vocabulary: int = 49_408
    """Rows of the token table."""
    quick_gelu: bool
    """x * sigmoid(1.702 x) instead of GELU; the tensors do not show it."""
    pixel_mean: tuple[float, float, float] = ClipSpec.pixel_mean
    pixel_std: tuple[float, float, float] = ClipSpec.pixel_std


VIT_B_32 = ClipSizes(
    embed_dim=512,
    image_size=224,
    patch_size=32,
    vision_width=768,
    vision_layers=12,
    vision_heads=12,
    vision_mlp=3072,
    text_width=512,
    text_layers=12,
    text_heads=8,
    text_mlp=2048,
    quick_gelu=True,
)
"""OpenAI's ViT-B/32. Source of this and the next two: open_clip's configs of the same names, quickgelu."""

VIT_B_16 = dataclasses.replace(VIT_B_32, patch_size=16)
"""OpenAI's ViT-B/16, the paper's."""

VIT_L_14 = dataclasses.replace(
    VIT_B_32,
    embed_dim=768,
    patch_size=14,
    vision_width=1024,
    vision_layers=24,
    vision_heads=16,
    vision_mlp=4096,
    text_width=768,
    text_heads=12,
    text_mlp=3072,
)
"""OpenAI's ViT-L/14 at 224 px."""


def infer_clip_sizes(
    tensors: Mapping[str, torch.Tensor],
    file: Path,
    *,
    quick_gelu: bool,
    config: ClipConfig | None = None,
    written_as: Callable[[str], str] = str,
) -> ClipSizes:
    """Infer the sizes from a checkpoint's tensors.

    Args:
        tensors: by open_clip's names; only their shapes are read.
        file: their origin, for messages.
        quick_gelu: the activation.
        config: next to the file; heads and pixel statistics are taken from it.
        written_as: from open_clip's name of a tensor to the file's, for messages.

    Raises:
        InputError: the tensors belong to another architecture, contradict the config, or leave the number of
            heads open.
    """
    shapes = Shapes(file, tensors, written_as)
    vision_width, _, patch_size, _ = shapes.shape("visual.conv1.weight", 4)
    places = shapes.shape("visual.positional_embedding", 2)[0] - 1
    grid = math.isqrt(places)
    if grid < 1 or grid * grid != places:
        raise shapes.error(
            "visual.positional_embedding",
            f"has {places + 1} rows, expected one for the class token and a square of patches",
        )
    context_length, text_width = shapes.shape("positional_embedding", 2)
    if context_length != ModelSpec.context_length:
        raise shapes.error(
            "positional_embedding",
            f"has {context_length} rows, expected {ModelSpec.context_length}, as the diffusion model's text "
            "encoder; use a CLIP of that length",
        )
    sizes = ClipSizes(
        embed_dim=shapes.shape("visual.proj", 2)[1],
        image_size=patch_size * grid,
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=shapes.count("visual.transformer.resblocks"),
        vision_heads=config.vision_heads if config else _heads_by_rule(vision_width, "image", file),
        vision_mlp=shapes.shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        text_width=text_width,
        text_layers=shapes.count("transformer.resblocks"),
        text_heads=config.text_heads if config else _heads_by_rule(text_width, "text", file),
        text_mlp=shapes.shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        context_length=context_length,
        vocabulary=shapes.shape("token_embedding.weight", 2)[0],
        quick_gelu=quick_gelu,
    )
    return sizes if config is None else _with_config(sizes, file, config)


def build_clip(sizes: ClipSizes) -> open_clip.CLIP:
    """Build the module, with random weights, or without under accelerate's `init_empty_weights`."""
    return open_clip.CLIP(
        embed_dim=sizes.embed_dim,
        vision_cfg={
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
            "width": sizes.vision_width,
            "layers": sizes.vision_layers,
            "head_width": sizes.vision_width // sizes.vision_heads,
            "mlp_ratio": _ratio(sizes.vision_mlp, sizes.vision_width),
        },
        text_cfg={
            "context_length": sizes.context_length,
            "vocab_size": sizes.vocabulary,
            "width": sizes.text_width,
            "heads": sizes.text_heads,
            "layers": sizes.text_layers,
            "mlp_ratio": _ratio(sizes.text_mlp, sizes.text_width),
        },
        quick_gelu=sizes.quick_gelu,
    )


def clip_spec(sizes: ClipSizes) -> ClipSpec:
    """Return the sizes that a bundle's manifest holds."""
    return ClipSpec(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        width=sizes.vision_width,
        embed_dim=sizes.embed_dim,
        pixel_mean=sizes.pixel_mean,
        pixel_std=sizes.pixel_std,
    )


def _heads_by_rule(width: int, tower: str, file: Path) -> int:
    if width % HEAD_WIDTH or (tower == "image" and width > _WIDEST_BY_RULE):
        raise InputError(
            f"{file}: the number of heads of an {tower} tower {width} wide cannot be inferred from its "
            "tensors; put the model's open_clip_config.json (or transformers' config.json) next to the file"
        )
    return width // HEAD_WIDTH


def _with_config(sizes: ClipSizes, file: Path, config: ClipConfig) -> ClipSizes:
    """Return the sizes with the config's pixel statistics; refuse the config of another model."""
    for name, stated in config.stated.items():
        found = getattr(sizes, name)
        if found != stated:
            raise InputError(
                f"{config.file} says {name} {stated}, the tensors of {file.name} say {found}; "
                "use the config that came with the checkpoint"
            )
    for width, heads in ((sizes.vision_width, sizes.vision_heads), (sizes.text_width, sizes.text_heads)):
        if heads < 1 or width % heads:
            raise InputError(f"{config.file} says {heads} heads, expected a divisor of the width, {width}")
    return dataclasses.replace(sizes, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std)


def _ratio(mlp: int, width: int) -> float:
    """Return the ratio for open_clip, which multiplies and rounds down; 0.5 absorbs rounding errors."""
    return (mlp + 0.5) / width
