"""MobileSAM's image encoder: a TinyViT whose last stage keeps its resolution, and SAM's neck.

The layers are timm's, with timm's names; `PUBLISHED` has those of MobileSAM's file. Source: MobileSAM,
mobile_sam/modeling/tiny_vit_sam.py.

Axes: b = batch, c = channels of the embedding, y, x = pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import ConvLayer, ConvNorm, PatchEmbed, PatchMerging, TinyVitStage
from torch import nn

PATCH = 4
"""Pixels per cell of the first stage."""


@dataclass(frozen=True, kw_only=True)
class TinyVitSizes:
    """Sizes of the encoder; the first stage has no attention, so its window and heads do not exist."""

    widths: tuple[int, ...]
    """Channels of each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    heads: tuple[int, ...]
    """Heads of each stage behind the first."""
    windows: tuple[int, ...]
    """Side in cells of the windows of each stage behind the first."""
    strides: tuple[int, ...] = (2, 2, 1)
    """Cells of the stage before per cell, of each stage behind the first."""
    embed_channels: int = 256

    @property
    def patch_size(self) -> int:
        """Pixels per cell of the embedding."""
        side = PATCH
        for stride in self.strides:
            side *= stride
        return side


VIT_T = TinyVitSizes(widths=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(4, 5, 10), windows=(7, 14, 7))
"""The published one. Source: MobileSAM, mobile_sam/build_sam.py, build_sam_vit_t."""


class TinyVitEncoder(nn.Module):
    """Normalized image [b, 3, y, x] -> embedding [b, c, y / patch size, x / patch size]."""

    def __init__(self, sizes: TinyVitSizes) -> None:
        super().__init__()
        first, channels = sizes.widths[0], sizes.embed_channels
        self.patch_embed = PatchEmbed(3, first, nn.GELU)
        self.stages = nn.Sequential(
            ConvLayer(first, sizes.depths[0], nn.GELU),
            *(_stage(sizes, index) for index in range(1, len(sizes.widths))),
        )
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.widths[-1], channels, kernel_size=1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image embedding."""
        embedding: torch.Tensor = self.neck(self.stages(self.patch_embed(image)))
        return embedding


def _stage(sizes: TinyVitSizes, index: int) -> TinyVitStage:
    width = sizes.widths[index]
    stage = TinyVitStage(
        dim=sizes.widths[index - 1],
        out_dim=width,
        depth=sizes.depths[index],
        num_heads=sizes.heads[index - 1],
        window_size=sizes.windows[index - 1],
        downsample=PatchMerging,
    )
    stage.downsample.conv2 = ConvNorm(width, width, 3, sizes.strides[index - 1], 1, groups=width)
    return stage
