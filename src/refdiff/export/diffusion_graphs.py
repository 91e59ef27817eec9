"""Stable Diffusion's graphs: text states, posterior moments, and the UNet with its taps (METHOD §4.7).

A tap reads the cross-attention logits of a layer while its attention stays one fused kernel:

    mean over heads of q_h . k_h / sqrt(d)  =  (Q . K) / (heads * sqrt(d))      on the un-split Q and K

Q is scaled before the product, in the tap and in the attention alike: the order that TensorRT recognizes
(TensorRT#4333), and the one that stays in range in half precision.

Axes: b = batch, q = queries (the tap's grid g*g, row-major), k = text tokens, w = heads * head width,
l = tapped layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import nn

from refdiff.contracts.spec import COARSE_LAYER, DiffusionSpec
from refdiff.errors import InputError
from refdiff.export.clip_graphs import causal_mask, masked_attention

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

TAPPED_ATTENTION = ".transformer_blocks.0.attn2"
"""Suffix from a tapped layer's name to its cross-attention, in diffusers' names."""

SELF_ATTENTION = ".transformer_blocks.0.attn1"
"""Suffix from a tapped layer's name to its self-attention."""


class FusedAttention:
    """A diffusers attention processor: fused, with Q scaled first; records its tap if given a dictionary."""

    def __init__(self, taps: dict[str, torch.Tensor] | None = None, name: str = "") -> None:
        self._taps = taps
        self._name = name

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend as diffusers' default processor does for [b, q, w] states without a mask."""
        if hidden_states.ndim != 3 or attention_mask is not None or temb is not None:
            raise InputError("FusedAttention takes [batch, tokens, width] states and no attention mask")
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        width = query.shape[-1] // attn.heads
        query = query * width**-0.5
        if self._taps is not None:
            self._taps[self._name] = (query * (1.0 / attn.heads)) @ key.transpose(1, 2)  # [b, q, k]
        query, key, value = (
            states.unflatten(-1, (attn.heads, width)).transpose(1, 2) for states in (query, key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # [b, heads, q, w / heads]
        out: torch.Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class TapReader:
    """The tapped logits of one forward pass."""

    def __init__(self, spec: DiffusionSpec) -> None:
        outputs = {
            "taps": [layer + TAPPED_ATTENTION for layer in spec.tapped_layers],
            "coarse": [COARSE_LAYER + TAPPED_ATTENTION],
            "self": [layer + SELF_ATTENTION for layer in spec.tapped_layers],
        }
        self._outputs = [outputs[name] for name in ("taps", *spec.maps)]
        self.wanted = {name for names in self._outputs for name in names}
        self.by_name: dict[str, torch.Tensor] = {}

    def stacked(self) -> tuple[torch.Tensor, ...]:
        """Return the taps [b, l, q, k], then the maps of the spec, in its order (METHOD §10.11, §10.12)."""
        return tuple(torch.stack([self.by_name[name] for name in names], dim=1) for names in self._outputs)


@contextmanager
def tapped(unet: UNet2DConditionModel, spec: DiffusionSpec) -> Iterator[TapReader]:
    """Fuse every attention of `unet` and read those that the spec names while the block runs.

    Raises:
        InputError: the UNet has no such layer.
    """
    modules: dict[str, Any] = dict(cast(nn.Module, unet).named_modules())
    reader = TapReader(spec)
    unknown = sorted(reader.wanted - set(modules))
    if unknown:
        raise InputError(
            f"this UNet has no {unknown[0]}; name tapped layers as in down_blocks.2.attentions.0, and leave "
            "coarse out of --maps where the middle block has no attention"
        )
    attentions = {name: m for name, m in modules.items() if name.endswith((".attn1", ".attn2"))}
    before = {name: module.processor for name, module in attentions.items()}
    try:
        for name, module in attentions.items():
            module.processor = FusedAttention(reader.by_name if name in reader.wanted else None, name)
        yield reader
    finally:
        for name, module in attentions.items():
            module.processor = before[name]


class SdText(nn.Module):
    """Token ids [b, k] int32 -> the states [b, k, context width] the UNet attends to.

    The original's forward builds its causal mask from run-time shapes and -inf; here the mask is a constant.
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
        """Return the last hidden state, after the final layer norm."""
        x = self.token_embedding(ids) + self.positions  # [b, k, w]
        for layer in self.layers:
            attn, states = layer.self_attn, layer.layer_norm1(x)
            query, key, value = attn.q_proj(states), attn.k_proj(states), attn.v_proj(states)
            x = x + attn.out_proj(masked_attention(query, key, value, self.causal, heads=attn.num_heads))
            x = x + layer.mlp(layer.layer_norm2(x))
        out: torch.Tensor = self.final_layer_norm(x)
        return out


NO_VARIANCE = -30.0
"""Log-variance of a latent that is certain: the lower limit of diffusers' posterior, std = exp(-15)."""


class VaeEncoder(nn.Module):
    """Image [1, 3, y, x] in -1..1 -> posterior moments: mean and log-variance, stacked along the channels.

    The caller draws from the posterior and scales, so the graph is deterministic. An `AutoencoderTiny`
    (TAESD) has no posterior, and its latents are scaled already: the mean is the latent divided by the
    caller's factor, the log-variance `NO_VARIANCE`.

    Args:
        vae: the autoencoder; its decoder is not used.
        scaling_factor: what the caller multiplies the mean with.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, scaling_factor: float) -> None:
        super().__init__()
        modules: Any = vae  # diffusers does not type its submodules
        self.encoder = modules.encoder
        quant_conv = getattr(modules, "quant_conv", None)
        self.quant_conv = nn.Identity() if quant_conv is None else quant_conv
        is_tiny = isinstance(vae, AutoencoderTiny)
        self._scale = modules.config.scaling_factor / scaling_factor if is_tiny else None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return moments [1, 2 * latent channels, y / factor, x / factor]."""
        encoded: torch.Tensor = self.quant_conv(self.encoder(image))
        if self._scale is None:
            return encoded
        return torch.cat([encoded * self._scale, torch.full_like(encoded, NO_VARIANCE)], dim=1)


class Unet(nn.Module):
    """Latent, timestep [b] and context -> predicted noise, taps [b, l, g*g, k], and the spec's other maps."""

    def __init__(self, unet: UNet2DConditionModel, spec: DiffusionSpec) -> None:
        super().__init__()
        self.unet: Any = unet
        self._spec = spec

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Run one full pass."""
        with tapped(self.unet, self._spec) as taps:
            result = self.unet(latent, timestep, encoder_hidden_states=context, return_dict=False)
        return result[0], *taps.stacked()


class UnetTaps(Unet):
    """The same pass, taps only; its exported graph is cut out of `unet` (see `passes.early_exit`)."""

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return taps [b, l, g*g, k], and the spec's other maps."""
        return super().forward(latent, timestep, context)[1:]
