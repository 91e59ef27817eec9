"""Record the tapped attentions of a UNet, as the method defines them (METHOD §4.4, §4.5).

In: a diffusers UNet and the names of its tapped layers. Out: per layer and pass the head mean of the
attention, before the softmax (the release) or after it (the paper's text).

This is the definition, written plainly: heads are split, q k^T is scaled by 1/sqrt(d_head) and averaged over
the heads. The exported graphs use the identity of METHOD §4.7 on the un-split projections instead, and are
measured against this. The attention's output comes from the original processor, so tapping changes no number.

Axes: b = batch, h = heads, q = queries (the tap grid, row by row), t = text tokens, d = channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from refdiff.errors import InputError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Attention = Any
"""diffusers' `Attention`; its annotations know only diffusers' own processors."""

CROSS_ATTENTION = "transformer_blocks.0.attn2"
"""Path of a tapped layer's attention to the text, in diffusers' names (METHOD §4.4)."""

SELF_ATTENTION = "transformer_blocks.0.attn1"
"""Path of a tapped layer's attention to itself (METHOD §10.12)."""


class Taps:
    """The attention maps that a tapped UNet recorded."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._maps: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}

    def record(self, layer: str, attention: torch.Tensor) -> None:
        """Record one pass of one layer, [b, q, t]."""
        self._maps[layer].append(attention)

    def stacked(self, *, passes: int) -> torch.Tensor:
        """Return all maps: [pass, layer, b, q, t].

        Raises:
            InputError: not exactly one map per layer and pass was recorded.
        """
        counts = {layer: len(maps) for layer, maps in self._maps.items()}
        if set(counts.values()) != {passes}:
            raise InputError(
                f"the UNet recorded {counts} attention maps, expected {passes} of every layer; "
                "name each tapped layer that runs once per pass in spec.diffusion.tapped_layers"
            )
        return torch.stack([torch.stack(maps) for maps in self._maps.values()], dim=1)


@contextmanager
def tapped(
    unet: UNet2DConditionModel,
    layers: Sequence[str],
    *,
    softmax: bool = False,
    attention: str = CROSS_ATTENTION,
) -> Iterator[Taps]:
    """Record the named layers' attention inside the block; the UNet is restored when it ends.

    Args:
        unet: the model whose attention processors are replaced.
        layers: names such as `up_blocks.1.attentions.0`.
        softmax: record probabilities, the softmax of every head averaged (METHOD §8).
        attention: which of a layer's two: `CROSS_ATTENTION` or `SELF_ATTENTION`.

    Raises:
        InputError: the UNet has no such layer.
    """
    attentions = {layer: _attention(unet, layer, attention) for layer in layers}
    before = {layer: each.processor for layer, each in attentions.items()}
    taps = Taps(layers)
    try:
        for layer, each in attentions.items():
            each.set_processor(_Tap(layer, before[layer], taps.record, softmax=softmax))
        yield taps
    finally:
        for layer, each in attentions.items():
            each.set_processor(before[layer])


def head_mean_attention(
    attention: Attention, hidden: torch.Tensor, context: torch.Tensor, *, softmax: bool
) -> torch.Tensor:
    """Return the mean over the heads of q k^T / sqrt(d_head), or of its softmax.

    Args:
        attention: the layer, with its projections and head count.
        hidden: [b, q, channels].
        context: [b, t, width of the text states]; `hidden` for a self-attention.
        softmax: take the softmax over the tokens, per head, before the mean.

    Returns:
        [b, q, t].
    """
    queries = _split_heads(attention.to_q(hidden), attention.heads)  # [b, h, q, d]
    keys = _split_heads(attention.to_k(context), attention.heads)  # [b, h, t, d]
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])  # [b, h, q, t]
    per_head = logits.softmax(dim=-1) if softmax else logits
    return per_head.mean(dim=1)


class _Tap:
    """A diffusers attention processor that records, then calls the one it replaces."""

    def __init__(
        self, layer: str, inner: Any, record: Callable[[str, torch.Tensor], None], *, softmax: bool
    ) -> None:
        self._layer, self._inner, self._record, self._softmax = layer, inner, record, softmax

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        attention = head_mean_attention(attn, hidden_states, context, softmax=self._softmax)
        self._record(self._layer, attention)
        output: torch.Tensor = self._inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return output


def _attention(unet: UNet2DConditionModel, layer: str, attention: str) -> Attention:
    modules: Any = unet  # to a type checker without torch's types, diffusers' models are placeholders
    try:
        return modules.get_submodule(f"{layer}.{attention}")
    except AttributeError as error:
        raise InputError(
            f"the UNet has no layer {layer!r} with a {attention}; "
            "correct spec.diffusion.tapped_layers, for example to 'up_blocks.1.attentions.0'"
        ) from error


def _split_heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    """Reshape [b, n, h*d] to [b, h, n, d]."""
    batch, length, _ = projected.shape
    return projected.view(batch, length, heads, -1).transpose(1, 2)
