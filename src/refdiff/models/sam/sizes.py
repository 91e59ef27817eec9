"""SAM's sizes: inferred from a checkpoint's tensors, and the module they describe.

Names are segment_anything's own (`image_encoder.blocks.0.attn.rel_pos_h`). A block's table of relative
positions has 2 * side - 1 rows, each as wide as one head. Where the side is that of the grid of patches,
the block attends globally, otherwise in windows of that side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from refdiff.contracts.spec import SamSpec
from refdiff.models.configs import Shapes
from refdiff.networks.efficient_vit import (
    EFFICIENT_VIT_L0,
    EFFICIENT_VIT_XL0,
    NORM_EPSILON,
    EfficientVitEncoder,
    EfficientVitSizes,
)
from refdiff.networks.tiny_vit import VIT_T, TinyVitEncoder, TinyVitSizes

MASKS = 3
"""Masks per prompt that the runtime chooses among; the one for unambiguous prompts is not counted."""

DECODER_HEADS = 8
"""Heads of every published decoder; the tensors do not show them. Source: segment_anything/build_sam.py."""


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """Sizes of the prompt encoder and the mask decoder; the defaults are those of every published SAM."""

    image_size: int = 1024
    """Side in px of the padded square image."""
    embed_channels: int = 256
    """Channels of the image embedding, the prompts and the decoder."""
    mask_channels: int = 16
    """Hidden channels where the prompt encoder reads a mask."""
    masks: int = MASKS
    decoder_depth: int = 2
    decoder_heads: int = DECODER_HEADS
    decoder_mlp_dim: int = 2048
    decoder_downsampling: int = 2
    """Embedding channels per channel inside the decoder's cross-attention."""
    iou_depth: int = 3
    """Layers of the head that predicts the masks' IoU."""
    iou_width: int = 256


@dataclass(frozen=True, kw_only=True)
class SamSizes(DecoderSizes):
    """Sizes of a SAM with a ViT; the defaults are common to ViT-B, L and H."""

    width: int
    """Channels of the image encoder's tokens."""
    depth: int
    """Number of blocks of the image encoder."""
    heads: int
    mlp_dim: int
    """Hidden width of the image encoder's MLPs."""
    global_blocks: tuple[int, ...]
    """Blocks that attend to the whole image; the others attend inside windows."""
    window_size: int = 14
    """Side of a window in patches; 0 if all blocks are global."""
    patch_size: int = 16
    absolute_positions: bool = True

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    def build_encoder(self) -> nn.Module:
        """Build the image encoder, with random weights."""
        encoder: nn.Module = ImageEncoderViT(
            img_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            # It computes int(width * ratio): half a channel more absorbs rounding errors.
            mlp_ratio=(self.mlp_dim + 0.5) / self.width,
            out_chans=self.embed_channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_abs_pos=self.absolute_positions,
            use_rel_pos=True,
            window_size=self.window_size,
            global_attn_indexes=self.global_blocks,
        )
        return encoder


@dataclass(frozen=True, kw_only=True)
class TinySamSizes(DecoderSizes):
    """Sizes of a MobileSAM."""

    encoder: TinyVitSizes

    @property
    def grid(self) -> int:
        """Cells of the embedding per side."""
        return self.image_size // self.encoder.patch_size

    def build_encoder(self) -> nn.Module:
        """Build the image encoder, with random weights."""
        return TinyVitEncoder(self.encoder)


@dataclass(frozen=True, kw_only=True)
class EfficientSamSizes(DecoderSizes):
    """Sizes of an EfficientViT-SAM.

    The L models see an image of 512 px, and were trained with prompts on one of 1024 px. Here prompts are on
    the image that the encoder sees, as everywhere: each is a quarter of one of its pixels off.
    """

    encoder: EfficientVitSizes

    @property
    def grid(self) -> int:
        """Cells of the embedding per side."""
        return self.encoder.embed_size

    def build_encoder(self) -> nn.Module:
        """Build the image encoder, with random weights."""
        return EfficientVitEncoder(self.encoder)


AnySamSizes = SamSizes | TinySamSizes | EfficientSamSizes

# segment_anything/build_sam.py, build_sam_vit_b, _l and _h.
VIT_B = SamSizes(width=768, depth=12, heads=12, mlp_dim=3072, global_blocks=(2, 5, 8, 11))
VIT_L = SamSizes(width=1024, depth=24, heads=16, mlp_dim=4096, global_blocks=(5, 11, 17, 23))
VIT_H = SamSizes(width=1280, depth=32, heads=16, mlp_dim=5120, global_blocks=(7, 15, 23, 31))


MOBILE_SAM = TinySamSizes(encoder=VIT_T)
EFFICIENT_SAM_L0 = EfficientSamSizes(encoder=EFFICIENT_VIT_L0, image_size=EFFICIENT_VIT_L0.image_size)
EFFICIENT_SAM_XL0 = EfficientSamSizes(encoder=EFFICIENT_VIT_XL0)


def build_sam(sizes: AnySamSizes) -> Sam:
    """Build the module, with random weights, or without under accelerate's `init_empty_weights`."""
    encoder: Any = sizes.build_encoder()  # `Sam` is annotated with the ViT, and takes any encoder
    encoder.img_size = sizes.image_size  # which segment_anything's predictor reads
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=sizes.embed_channels,
            image_embedding_size=(sizes.grid, sizes.grid),
            input_image_size=(sizes.image_size, sizes.image_size),
            mask_in_chans=sizes.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=sizes.embed_channels,
            transformer=TwoWayTransformer(
                depth=sizes.decoder_depth,
                embedding_dim=sizes.embed_channels,
                num_heads=sizes.decoder_heads,
                mlp_dim=sizes.decoder_mlp_dim,
                attention_downsample_rate=sizes.decoder_downsampling,
            ),
            num_multimask_outputs=sizes.masks,
            iou_head_depth=sizes.iou_depth,
            iou_head_hidden_dim=sizes.iou_width,
        ),
    )
    if isinstance(sizes, EfficientSamSizes):
        for module in sam.mask_decoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = NORM_EPSILON
    return sam


def sam_spec(sizes: AnySamSizes) -> SamSpec:
    """Return the sizes that a bundle's manifest holds, with SAM's published thresholds."""
    return SamSpec(image_size=sizes.image_size, embed_channels=sizes.embed_channels, embed_size=sizes.grid)


def infer_sam_sizes(
    tensors: Mapping[str, torch.Tensor],
    file: Path,
    *,
    written_as: Callable[[str], str] = str,
    decoder_heads: int = DECODER_HEADS,
) -> SamSizes:
    """Infer the sizes from a checkpoint's tensors; only shapes are read, so meta tensors suffice.

    Args:
        tensors: by segment_anything's names.
        file: their origin, for messages.
        written_as: from segment_anything's name of a tensor to the file's, for messages.
        decoder_heads: the tensors do not show them.

    Raises:
        InputError: a tensor that determines a size is missing or cannot belong to a SAM.
    """
    shapes = Shapes(file, tensors, written_as)
    width, _, patch_size, _ = shapes.shape("image_encoder.patch_embed.proj.weight", 4)
    depth = shapes.count("image_encoder.blocks")
    sides, head_width = _attention(shapes, depth)
    absolute = "image_encoder.pos_embed" in tensors
    grid = shapes.shape("image_encoder.pos_embed", 4)[1] if absolute else max(sides)
    windows = {side: block for block, side in enumerate(sides) if side != grid}
    if len(windows) > 1 or not (windows or absolute):
        block = max(windows.values(), default=0)
        raise shapes.error(
            _rel_pos_name(block), "does not determine which blocks attend in windows, or the windows' size"
        )
    if width % head_width:
        raise shapes.error(_rel_pos_name(0), f"is {head_width} wide: no whole number of heads in {width}")
    return SamSizes(
        width=width,
        depth=depth,
        heads=width // head_width,
        mlp_dim=shapes.shape("image_encoder.blocks.0.mlp.lin1.weight", 2)[0],
        global_blocks=tuple(block for block, side in enumerate(sides) if side == grid),
        window_size=next(iter(windows), 0),
        image_size=grid * patch_size,
        patch_size=patch_size,
        absolute_positions=absolute,
        **infer_decoder_sizes(shapes, decoder_heads),
    )


def infer_decoder_sizes(shapes: Shapes, heads: int = DECODER_HEADS) -> dict[str, int]:
    """Infer the fields of `DecoderSizes` from the tensors of both decoders, but for the image's side.

    Args:
        shapes: by segment_anything's names.
        heads: of the decoder; the tensors do not show them.

    Raises:
        InputError: a tensor that determines a size is missing or cannot belong to a SAM.
    """
    channels, inner = _decoder_widths(shapes, heads)
    return {
        "embed_channels": channels,
        "mask_channels": shapes.shape("prompt_encoder.mask_downscaling.3.weight", 4)[0],
        "masks": _masks(shapes),
        "decoder_depth": shapes.count("mask_decoder.transformer.layers"),
        "decoder_heads": heads,
        "decoder_mlp_dim": shapes.shape("mask_decoder.transformer.layers.0.mlp.lin1.weight", 2)[0],
        "decoder_downsampling": channels // inner,
        "iou_depth": shapes.count("mask_decoder.iou_prediction_head.layers"),
        "iou_width": shapes.shape("mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
    }


def _rel_pos_name(block: int) -> str:
    return f"image_encoder.blocks.{block}.attn.rel_pos_h"


def _attention(shapes: Shapes, depth: int) -> tuple[list[int], int]:
    """Return the side in patches that each block attends to, and the width of a head in channels."""
    tables = [shapes.shape(_rel_pos_name(block), 2) for block in range(max(depth, 1))]
    return [(rows + 1) // 2 for rows, _ in tables], tables[0][1]


def _masks(shapes: Shapes) -> int:
    name = "mask_decoder.mask_tokens.weight"
    rows = shapes.shape(name, 2)[0]
    if rows != MASKS + 1:
        raise shapes.error(name, f"has {rows} rows, expected {MASKS + 1}, one per mask that a SAM predicts")
    return MASKS


def _decoder_widths(shapes: Shapes, heads: int) -> tuple[int, int]:
    """Return the channels of the decoder, and those inside its cross-attention."""
    name = "mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"
    inner, channels = shapes.shape(name, 2)
    if inner > channels or inner % heads or channels % heads:
        raise shapes.error(name, f"has shape {[inner, channels]}, which {heads} heads cannot share")
    return channels, inner
