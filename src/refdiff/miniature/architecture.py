"""The miniatures' architecture: the classes of the real models at a few per cent of their size.

`MINIATURE` and `MINIATURE_EDGE` hold the sizes that reference and runtime read; the functions build the
modules. The second is to the first as `refdiff-edge` is to `refdiff`: TAESD in place of the VAE, a TinyViT in
place of SAM's ViT, a UNet without its innermost level. Only the text encoders are the same.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec
from refdiff.networks.tiny_vit import TinyVitEncoder, TinyVitSizes

MINIATURE = ModelSpec(
    name="mini",
    diffusion=DiffusionSpec(
        image_size=128,
        vae_factor=4,
        latent_channels=4,
        scaling_factor=0.18215,
        context_width=128,
        tapped_layers=("down_blocks.1.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"),
        tap_size=16,
        cut_after="up_blocks.1",
    ),
    sam=SamSpec(
        image_size=160,
        embed_channels=64,
        embed_size=20,
        points_per_side=16,
        pred_iou_threshold=0.8,
        stability_threshold=0.85,
        edge_pred_iou_threshold=0.6,
    ),
    clip=ClipSpec(image_size=64, patch_size=8, width=128, embed_dim=96),
)
"""Sizes of the miniature."""

MINIATURE_EDGE = dataclasses.replace(
    MINIATURE,
    name="mini-edge",
    diffusion=dataclasses.replace(
        MINIATURE.diffusion,
        tapped_layers=(
            "down_blocks.1.attentions.0",
            "up_blocks.0.attentions.0",
            "up_blocks.0.attentions.1",
        ),
        cut_after="up_blocks.0",
    ),
)
"""Sizes of its small counterpart: the same images, latents and embeddings."""

CLIP_LOGIT_SCALE = 100.0
"""Trained logit scale of OpenAI CLIP; fixed, so that similarities differ by hundredths as there."""


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """Build the text encoder of the diffusion model: causal, two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=MINIATURE.diffusion.context_width,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MINIATURE.context_length,
            hidden_act="quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def autoencoder() -> AutoencoderKL:
    """Build the VAE: two halvings, four latent channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=MINIATURE.diffusion.latent_channels,
        norm_num_groups=8,
        sample_size=MINIATURE.diffusion.image_size,
        scaling_factor=MINIATURE.diffusion.scaling_factor,
    )


def tiny_autoencoder() -> AutoencoderTiny:
    """Build the counterpart of TAESD; its latents are scaled already. The decoder is not used."""
    return AutoencoderTiny(
        encoder_block_out_channels=(16,) * 3,
        num_encoder_blocks=(0, 1, 4),
        decoder_block_out_channels=(8,),
        num_decoder_blocks=(0,),
        latent_channels=MINIATURE.diffusion.latent_channels,
    )


def unet() -> UNet2DConditionModel:
    """Build the denoiser: 32x32, 16x16 and 8x8 cells; cross-attention at 16x16 and in the middle block."""
    return UNet2DConditionModel(
        sample_size=MINIATURE.diffusion.latent_size,
        in_channels=MINIATURE.diffusion.latent_channels,
        out_channels=MINIATURE.diffusion.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 96, 96),
        layers_per_block=1,
        cross_attention_dim=MINIATURE.diffusion.context_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def small_unet() -> UNet2DConditionModel:
    """Build the counterpart of BK-SDM: 32x32 and 16x16 cells, no middle block, narrower at 16x16."""
    return UNet2DConditionModel(
        sample_size=MINIATURE.diffusion.latent_size,
        in_channels=MINIATURE.diffusion.latent_channels,
        out_channels=MINIATURE.diffusion.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=MINIATURE.diffusion.context_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def sam() -> Sam:
    """Build SAM: a five-layer ViT on 8 px patches, the original prompt encoder and mask decoder."""
    spec = MINIATURE.sam
    encoder = ImageEncoderViT(
        img_size=spec.image_size,
        patch_size=spec.image_size // spec.embed_size,
        embed_dim=128,
        depth=5,
        num_heads=4,
        mlp_ratio=4,
        out_chans=spec.embed_channels,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=5,
        global_attn_indexes=(1, 3, 4),
    )
    return _sam(encoder, decoder_depth=2)


def tiny_sam() -> Sam:
    """Build the counterpart of MobileSAM; its prompt transformer has one layer of two."""
    sizes = TinyVitSizes(
        widths=(24, 64, 64),
        depths=(1, 2, 2),
        heads=(4, 4),
        windows=(10, MINIATURE.sam.embed_size),
        strides=(2, 1),
        embed_channels=MINIATURE.sam.embed_channels,
    )
    return _sam(TinyVitEncoder(sizes), decoder_depth=1)


def _sam(encoder: Any, *, decoder_depth: int) -> Sam:
    spec = MINIATURE.sam
    encoder.img_size = spec.image_size  # which segment_anything's predictor reads
    grid = (spec.embed_size, spec.embed_size)
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=spec.embed_channels,
            image_embedding_size=grid,
            input_image_size=(spec.image_size, spec.image_size),
            mask_in_chans=8,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=spec.embed_channels,
            transformer=TwoWayTransformer(
                depth=decoder_depth, embedding_dim=spec.embed_channels, num_heads=4, mlp_dim=256
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=64,
        ),
        pixel_mean=list(spec.pixel_mean),
        pixel_std=list(spec.pixel_std),
    )


def small_clip(vocabulary: int) -> open_clip.CLIP:
    """Build the counterpart of a smaller CLIP: half of the image encoder's layers, the same text encoder."""
    return clip(vocabulary, image_layers=2)


def clip(vocabulary: int, *, image_layers: int = 4) -> open_clip.CLIP:
    """Build CLIP: a four-layer ViT on 8 px patches of 64 px images, a two-layer causal text encoder."""
    spec = MINIATURE.clip
    model = open_clip.CLIP(
        embed_dim=spec.embed_dim,
        vision_cfg={
            "image_size": spec.image_size,
            "patch_size": spec.patch_size,
            "width": spec.width,
            "layers": image_layers,
            "head_width": 32,
        },
        text_cfg={
            "context_length": MINIATURE.context_length,
            "vocab_size": vocabulary,
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
        quick_gelu=True,
    )
    model.logit_scale = nn.Parameter(torch.tensor(CLIP_LOGIT_SCALE).log(), requires_grad=False)
    return model
