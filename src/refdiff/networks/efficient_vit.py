"""EfficientViT-SAM's image encoder: convolutions, linear attention in the last stages, and a neck.

The layers are timm's; the names of all tensors are those of the published files. Source: mit-han-lab,
efficientvit/models/efficientvit/sam.py and backbone.py, EfficientViTLargeBackbone and SamNeck.

Axes: b = batch, e = channels, c = channels of the embedding, s = its side, y, x = pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.activations import GELUTanh
from timm.layers.norm import LayerNorm2d
from timm.models.efficientvit_mit import (
    ConvNormAct,
    FusedMBConv,
    LiteMLA,
    MBConv,
    ResidualBlock,
    build_local_block,
)
from torch import nn

NORM_EPSILON = 1e-6
"""Of every norm of the model, those of SAM's decoder too. Source: efficientvit/sam_model_zoo.py."""

# timm's annotations ask for classes or names, and its code calls what it is given.
_NORM: Any = partial(nn.BatchNorm2d, eps=NORM_EPSILON)
_ACTIVATION: Any = GELUTanh

_HEAD_WIDTH = 32
_EPSILON = 1e-15
"""Of the attention's quotient: all weights may be zero. Source: models/nn/ops.py, LiteMLA."""
_EXPAND, _EXPAND_LAST = 4, 6
"""Hidden channels per channel, of all stages but the first, and of the last; the first has as many."""
_ENTRY = 4
"""The same of a stage's first block, in units of the other blocks'."""


@dataclass(frozen=True, kw_only=True)
class EfficientVitSizes:
    """Sizes of the encoder."""

    widths: tuple[int, ...]
    """Channels of each stage; every stage halves the side."""
    depths: tuple[int, ...]
    """Blocks of each stage behind its first."""
    plain: int
    """Stages, from the first on, whose blocks are whole convolutions."""
    attended: int
    """Stages, from the last on, that attend. Those between `plain` and them have separable convolutions."""
    kernel: int
    """Side of the convolution that gives the attention its second scale."""
    neck_depth: int
    neck_expand: int
    """Hidden channels per channel of the neck's blocks."""
    image_size: int
    """Side in px of the padded square image."""
    embed_channels: int = 256
    embed_size: int = 64
    """Side of the embedding."""


# sam.py, efficientvit_sam_l0 to _l2, and _xl0 and _xl1.
_L = {"widths": (32, 64, 128, 256, 512), "plain": 3, "attended": 1, "kernel": 5, "neck_expand": 1}
_XL = {"widths": (32, 64, 128, 256, 512, 1024), "plain": 4, "attended": 2, "kernel": 3, "neck_expand": 4}
FAMILIES: Mapping[int, Mapping[str, Any]] = MappingProxyType(
    {5: {**_L, "image_size": 512}, 6: {**_XL, "image_size": 1024}}
)
"""Number of stages -> what the published encoders with so many have in common."""


def efficient_vit_sizes(depths: tuple[int, ...], neck_depth: int) -> EfficientVitSizes:
    """Return the sizes of a published encoder, whose family follows from its number of stages."""
    return EfficientVitSizes(**FAMILIES[len(depths)], depths=depths, neck_depth=neck_depth)


EFFICIENT_VIT_L0 = efficient_vit_sizes((1, 1, 1, 4, 4), neck_depth=4)
EFFICIENT_VIT_XL0 = efficient_vit_sizes((0, 1, 1, 2, 3, 3), neck_depth=6)


class EfficientVitEncoder(nn.Module):
    """Normalized image [b, 3, y, x] -> embedding [b, c, s, s]."""

    def __init__(self, sizes: EfficientVitSizes) -> None:
        super().__init__()
        self.backbone = _Backbone(sizes)
        self.neck = _Neck(sizes)
        self.norm = LayerNorm2d(sizes.embed_channels, eps=NORM_EPSILON)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image embedding."""
        embedding: torch.Tensor = self.norm(self.neck(self.backbone(image)))
        return embedding


class _Backbone(nn.Module):
    """The stages."""

    def __init__(self, sizes: EfficientVitSizes) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_stage(sizes, index) for index in range(len(sizes.widths)))

    def forward(self, states: torch.Tensor) -> list[torch.Tensor]:
        """Return what each stage computes."""
        of_stages = []
        for stage in self.stages:
            states = stage(states)
            of_stages.append(states)
        return of_stages


class _Sequence(nn.Module):
    """Modules one after the other, under the name that the published files have."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(modules)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for module in self.op_list:
            states = module(states)
        return states


class Resize(nn.Module):
    """Resize maps [b, e, y, x] to a square.

    Args:
        inputs: side of the maps of an image of the encoder's size.
        side: of the square.
    """

    def __init__(self, inputs: int, side: int) -> None:
        super().__init__()
        self.inputs, self.side = inputs, side

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return [b, e, side, side]."""
        return F.interpolate(states, (self.side, self.side), mode="bicubic", align_corners=False)


class _Neck(nn.Module):
    """The last three stages at one resolution, added and mixed by convolutions."""

    def __init__(self, sizes: EfficientVitSizes) -> None:
        super().__init__()
        channels = sizes.embed_channels
        self.input_ops = nn.ModuleList(
            _Sequence(
                [
                    ConvNormAct(width, channels, 1, norm_layer=_NORM, act_layer=None),
                    Resize(sizes.image_size >> stage, sizes.embed_size),
                ]
            )
            for stage, width in list(enumerate(sizes.widths, start=1))[:-4:-1]
        )
        self.middle = _Sequence(
            ResidualBlock(
                FusedMBConv(
                    channels,
                    channels,
                    expand_ratio=sizes.neck_expand,
                    norm_layer=_NORM,
                    act_layer=(_ACTIVATION, None),
                ),
                nn.Identity(),
            )
            for _ in range(sizes.neck_depth)
        )
        last = ConvNormAct(channels, channels, 1, bias=True, norm_layer=None, act_layer=None)
        self.output_ops = nn.ModuleList([_Sequence([last])])

    def forward(self, of_stages: list[torch.Tensor]) -> torch.Tensor:
        """Return [b, c, s, s]."""
        sized = [module(states) for module, states in zip(self.input_ops, of_stages[:-4:-1], strict=True)]
        mixed: torch.Tensor = self.output_ops[0](self.middle(sized[0] + sized[1] + sized[2]))
        return mixed


class _AttentionBlock(nn.Module):
    """Linear attention over the image at two scales, and a separable convolution."""

    def __init__(self, width: int, kernel: int, expand: int) -> None:
        super().__init__()
        attention = LiteMLA(
            width, width, dim=_HEAD_WIDTH, norm_layer=(None, _NORM), scales=(kernel,), eps=1e-15
        )
        mixing = MBConv(
            width,
            width,
            expand_ratio=expand,
            use_bias=(True, True, False),
            norm_layer=(None, None, _NORM),
            act_layer=(_ACTIVATION, _ACTIVATION, None),
        )
        self.context_module = ResidualBlock(attention, nn.Identity())
        self.local_module = ResidualBlock(mixing, nn.Identity())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Attend, then mix."""
        mixed: torch.Tensor = self.local_module(self.context_module(states))
        return mixed


def _stage(sizes: EfficientVitSizes, index: int) -> nn.Module:
    count, width = len(sizes.widths), sizes.widths[index]
    separable = index >= sizes.plain
    if index == 0:
        expand = 1
        entry: nn.Module = ConvNormAct(3, width, 3, stride=2, norm_layer=_NORM, act_layer=_ACTIVATION)
    else:
        expand = _EXPAND_LAST if index == count - 1 else _EXPAND
        halving = _local(sizes.widths[index - 1], width, 2, _ENTRY * expand, separable=separable)
        entry = ResidualBlock(halving, None)
    blocks = [
        _AttentionBlock(width, sizes.kernel, expand)
        if index >= count - sizes.attended
        else ResidualBlock(_local(width, width, 1, expand, separable=separable), nn.Identity())
        for _ in range(sizes.depths[index])
    ]
    return _Sequence([entry, *blocks])


def _local(inputs: int, outputs: int, stride: int, expand: int, *, separable: bool) -> nn.Module:
    block: nn.Module = build_local_block(
        in_channels=inputs,
        out_channels=outputs,
        stride=stride,
        expand_ratio=expand,
        norm_layer=_NORM,
        act_layer=_ACTIVATION,
        fewer_norm=separable,
        block_type="default" if separable else "fused",
    )
    return block
