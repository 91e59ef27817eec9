"""Stable Diffusion's graphs: text states, posterior moments, and the UNet with its taps (METHOD §4).

Axes: b = batch, l = tapped layers, g = tap grid side, k = text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from refdiff.export.masked_attention import causal_mask, masked_attention
from refdiff.export.taps import tapped

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel


class SdText(nn.Module):
    """Token ids [b, k] int32 -> the states [b, k, context width] the UNet attends to.

    The module's own forward builds its causal mask from run-time shapes and -inf; this one is fed a constant.
    """

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        tower: Any = getattr(text_encoder, "text_model", text_encoder)  # transformers 4 and 5
        self.token_embedding = tower.embeddings.token_embedding
        self.layers = tower.encoder.layers
        self.final_layer_norm = tower.final_layer_norm
        self.positions: torch.Tensor
        self.causal: torch.Tensor
        positions = tower.embeddings.position_embedding.weight.detach().clone()
        self.register_buffer("positions", positions)
        self.register_buffer("causal", causal_mask(len(positions)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The last hidden state, after the final layer norm."""
        x = self.token_embedding(ids) + self.positions  # [b, k, w]
        for layer in self.layers:
            attn, states = layer.self_attn, layer.layer_norm1(x)
            query, key, value = attn.q_proj(states), attn.k_proj(states), attn.v_proj(states)
            x = x + attn.out_proj(masked_attention(query, key, value, self.causal, heads=attn.num_heads))
            x = x + layer.mlp(layer.layer_norm2(x))
        out: torch.Tensor = self.final_layer_norm(x)
        return out


class VaeEncoder(nn.Module):
    """Image [1, 3, y, x] in -1..1 -> posterior moments: mean and log-variance, stacked on the channels.

    The draw (or the mean) and the scaling factor belong to the caller, so parity is not random.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        modules: Any = vae  # diffusers does not type its submodules
        self.encoder = modules.encoder
        self.quant_conv = modules.quant_conv if modules.quant_conv is not None else nn.Identity()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[1, 2 * latent channels, y / factor, x / factor]."""
        moments: torch.Tensor = self.quant_conv(self.encoder(image))
        return moments


class Unet(nn.Module):
    """Latent, timestep [b] and context -> predicted noise, and taps [b, l, g*g, k]."""

    def __init__(self, unet: UNet2DConditionModel, layers: Sequence[str]) -> None:
        super().__init__()
        self.unet: Any = unet
        self._layers = tuple(layers)

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One full pass."""
        with tapped(self.unet, self._layers) as taps:
            eps: torch.Tensor = self.unet(latent, timestep, encoder_hidden_states=context, return_dict=False)[
                0
            ]
        return eps, taps.stacked()


class UnetTaps(Unet):
    """The same pass, taps only; its exported graph is cut out of `unet`'s (see `early_exit`)."""

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """[b, l, g*g, k]."""
        return super().forward(latent, timestep, context)[1]
