"""Attention under an additive mask, written out so that it exports to plain products and one softmax.

Q is scaled before the product, and a blocked pair carries a finite value: exact in half precision, no NaN
where a whole row is blocked (FIELD §2, §4).

Axes: b = batch, t = tokens, w = width = heads * head width.
"""

from __future__ import annotations

import torch

from refdiff.contracts.graphs import BLOCKED


def causal_mask(length: int) -> torch.Tensor:
    """[1, t, t]: 0 where the key is the query or before it, `BLOCKED` after it."""
    return torch.full((1, length, length), BLOCKED).triu(1)


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, *, heads: int
) -> torch.Tensor:
    """Softmax attention with one mask for all heads.

    Args:
        query: [b, t, w], not yet scaled.
        key: [b, t, w].
        value: [b, t, w].
        mask: [b or 1, t, t], added to the logits.
        heads: number of heads w is split into.

    Returns:
        [b, t, w], before the output projection.
    """
    width = query.shape[-1] // heads
    query, key, value = (
        states.unflatten(-1, (heads, width)).transpose(1, 2) for states in (query * width**-0.5, key, value)
    )  # [b, heads, t, w / heads]
    logits = query @ key.transpose(2, 3) + mask.unsqueeze(1)
    return (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
