"""The miniature's architecture: the classes of the real models at a few per cent of their size.

`MINIATURE` holds the sizes that reference and runtime read; the functions build the modules.
"""

from __future__ import annotations

from functools import partial

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec

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


def sam() -> Sam:
    """Build SAM: a five-layer ViT on 8 px patches, the original prompt encoder and mask decoder."""
    spec = MINIATURE.sam
    grid = (spec.embed_size, spec.embed_size)
    return Sam(
        image_encoder=ImageEncoderViT(
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
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=spec.embed_channels,
            image_embedding_size=grid,
            input_image_size=(spec.image_size, spec.image_size),
            mask_in_chans=8,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=spec.embed_channels,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=spec.embed_channels, num_heads=4, mlp_dim=256
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=64,
        ),
        pixel_mean=list(spec.pixel_mean),
        pixel_std=list(spec.pixel_std),
    )


def clip(vocabulary: int) -> open_clip.CLIP:
    """Build CLIP: a four-layer ViT on 8 px patches of 64 px images, a two-layer causal text encoder."""
    spec = MINIATURE.clip
    model = open_clip.CLIP(
        embed_dim=spec.embed_dim,
        vision_cfg={
            "image_size": spec.image_size,
            "patch_size": spec.patch_size,
            "width": spec.width,
            "layers": 4,
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
