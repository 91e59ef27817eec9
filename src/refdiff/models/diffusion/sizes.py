"""The sizes of a Stable Diffusion model as arguments of its classes, and the modules built from them.

In: configs, read from a checkpoint or one of the constants here. Out: modules with random weights. Fields
that change neither a tensor's shape nor a result in float32 (the training image's side, upcasts) are not part
of a config, so that two checkpoints of one architecture have equal configs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from refdiff.contracts.spec import Padding, Prediction

Config = Mapping[str, Any]
"""Arguments of a module's class; sequences are tuples."""

TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
)
"""Fields of transformers' CLIPTextConfig in `DiffusionConfigs.text`."""

VAE_FIELDS = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "latent_channels",
)
"""Fields of AutoencoderKL that `DiffusionConfigs.vae` always has."""

TINY_VAE_FIELDS = (
    "in_channels",
    "latent_channels",
    "encoder_block_out_channels",
    "num_encoder_blocks",
    "act_fn",
)
"""Fields of AutoencoderTiny that `DiffusionConfigs.vae` always has, and its `scaling_factor`."""

UNET_FIELDS = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "use_linear_projection",
)
"""Fields of UNet2DConditionModel that `DiffusionConfigs.unet` always has."""

SCALING_FACTOR = 0.18215
"""Latent scale of SD 1.x and 2.x. Source: CompVis/stable-diffusion, v1-inference.yaml; METHOD §4.2."""

BETAS = (0.00085, 0.0120)
"""First and last beta of SD 1.x and 2.x. Source: the same; METHOD §4.3."""

TRAIN_TIMESTEPS = 1000
"""Source: the same."""

UNUSED_IDS: Config = MappingProxyType({"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1})
"""Published with SD 1.5 and 2.1. Only the pooled output depends on them, which is not used."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfigs:
    """One Stable Diffusion model: the sizes of its modules, and settings that its weights do not show."""

    text: Config
    """Arguments of CLIPTextConfig: `TEXT_FIELDS`."""
    vae: Config
    """Arguments of AutoencoderKL: `VAE_FIELDS`, and those that differ from the class's defaults; or of
    AutoencoderTiny: `TINY_VAE_FIELDS` and `scaling_factor`."""
    unet: Config
    """Arguments of UNet2DConditionModel: `UNET_FIELDS`, and those that differ from the class's defaults."""
    prediction: Prediction
    padding: Padding
    scaling_factor: float = SCALING_FACTOR
    train_timesteps: int = TRAIN_TIMESTEPS
    beta_start: float = BETAS[0]
    beta_end: float = BETAS[1]

    @property
    def vae_is_tiny(self) -> bool:
        """True if the autoencoder is an AutoencoderTiny."""
        return "encoder_block_out_channels" in self.vae

    @property
    def vae_widths(self) -> Sequence[int]:
        """Channels of each level of the autoencoder's encoder."""
        widths: Sequence[int] = self.vae[
            "encoder_block_out_channels" if self.vae_is_tiny else "block_out_channels"
        ]
        return widths


_VAE: Config = MappingProxyType(
    {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
    }
)

_UNET: Config = MappingProxyType(
    {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
    }
)

_TEXT: Config = MappingProxyType(
    {"vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5},
)

SD15 = DiffusionConfigs(
    text={
        **_TEXT,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
    vae=dict(_VAE),
    unet={**_UNET, "cross_attention_dim": 768, "attention_head_dim": 8, "use_linear_projection": False},
    prediction="epsilon",
    padding="end",
)
"""Stable Diffusion 1.1 to 1.5. Source: the config files of stable-diffusion-v1-5."""

SD21 = DiffusionConfigs(
    text={
        **_TEXT,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,  # of ViT-H's 24: the UNet was trained on the penultimate layer's states
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    vae=dict(_VAE),
    unet={
        **_UNET,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),  # the number of heads, by diffusers' historical name
        "use_linear_projection": True,
    },
    prediction="v_prediction",
    padding="zero",
)
"""Stable Diffusion 2.0 and 2.1 for 768 px; the base models (512 px) are the same with prediction "epsilon".

Source: the config files of stable-diffusion-2-1.
"""


TAESD: Config = MappingProxyType(
    {
        "in_channels": 3,
        "latent_channels": 4,
        "encoder_block_out_channels": (64, 64, 64, 64),
        "num_encoder_blocks": (1, 3, 3, 3),
        "act_fn": "relu",
        "scaling_factor": 1.0,
    }
)
"""A distilled encoder for the latents of SD 1.x and 2.x. Source: madebyollin/taesd, taesd.py, Encoder."""


def _bk_sdm(levels: int, *, middle: bool) -> DiffusionConfigs:
    down, up = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    unet = {
        **SD15.unet,
        "layers_per_block": 1,
        "block_out_channels": _UNET["block_out_channels"][:levels],
        "down_block_types": (*down, "DownBlock2D")[:levels],
        "up_block_types": ("UpBlock2D", *up)[-levels:],
        "mid_block_type": _UNET["mid_block_type"] if middle else None,
    }
    return replace(SD15, unet=unet)


BK_SDM_BASE = _bk_sdm(4, middle=True)
BK_SDM_SMALL = _bk_sdm(4, middle=False)
BK_SDM_TINY = _bk_sdm(3, middle=False)
"""SD 1.4 with one residual block less on each level, without its middle block, and without its lowest level.

Source: Nota-NetsPresso/BK-SDM, src/unet_config.
"""


def build_text_encoder(configs: DiffusionConfigs) -> CLIPTextModel:
    """Build the text encoder, with random weights."""
    return CLIPTextModel(CLIPTextConfig(**configs.text, **UNUSED_IDS))


def build_vae(configs: DiffusionConfigs) -> AutoencoderKL | AutoencoderTiny:
    """Build the autoencoder without its decoder, which the method never uses; with random weights."""
    if configs.vae_is_tiny:
        tiny: Any = AutoencoderTiny(**configs.vae)
        tiny.decoder = nn.Identity()
        return tiny
    vae: Any = AutoencoderKL(**configs.vae, scaling_factor=configs.scaling_factor)
    vae.decoder = nn.Identity()
    vae.post_quant_conv = nn.Identity()
    return vae


def build_unet(configs: DiffusionConfigs) -> UNet2DConditionModel:
    """Build the denoiser, with random weights."""
    return UNet2DConditionModel(**configs.unet)
