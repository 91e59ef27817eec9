"""SAM's two-way transformer, rearranged for many prompts on one picture: the same sums in another order.

The original projects every prompt's own image tokens, 4,096 of them at full size, in each attention. Here

* the first layer projects the image once, because there all prompts still share it;
* later, the projection moves to the few prompt tokens: q·(W k) = (Wᵀ q)·k, and the sum over W v of an attention
  is W applied to the sum over v. A key's bias adds the same to all logits of a query, which no softmax sees.

Heads are held side by side along one axis: a token's vector is repeated for every head, and zero outside the
head's own share. So no image tensor is ever split into heads or transposed.

Axes: n = prompts, p = image tokens, t = prompt tokens, h = heads, c = channels, i = channels inside an attention.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from segment_anything.modeling import TwoWayTransformer
    from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock


class PromptTransformer(nn.Module):
    """Tokens of the prompts and one image in, both after the transformer out."""

    def __init__(self, transformer: TwoWayTransformer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _Layer(layer, shared=index == 0) for index, layer in enumerate(transformer.layers)
        )
        self.final_attn = _ImageToToken(transformer.final_attn_token_to_image, shared=not self.layers)
        self.norm_final = transformer.norm_final_attn

    def forward(
        self, image: torch.Tensor, positions: torch.Tensor, prompts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run all layers.

        Args:
            image: [1, p, c].
            positions: [1, p, c].
            prompts: [n, t, c].

        Returns:
            Tokens [n, t, c] and image [n, p, c].
        """
        tokens = prompts
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompts, positions)
        tokens = tokens + self.final_attn(tokens + prompts, image + positions, image)
        return self.norm_final(tokens), image


class _Layer(nn.Module):
    """One layer: tokens among themselves, tokens from the image, a network, the image from the tokens."""

    def __init__(self, layer: TwoWayAttentionBlock, *, shared: bool) -> None:
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.attn_from_image = _ImageToToken(layer.cross_attn_token_to_image, shared=shared)
        self.attn_to_image = _TokenToImage(layer.cross_attn_image_to_token, shared=shared)
        self.norms = nn.ModuleList((layer.norm1, layer.norm2, layer.norm3, layer.norm4))
        self._places_first = not layer.skip_first_layer_pe

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, prompts: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [n, t, c] and image [n, p, c]; the image may come as [1, p, c]."""
        if self._places_first:
            placed = tokens + prompts
            tokens = tokens + self.self_attn(q=placed, k=placed, v=tokens)
        else:
            tokens = self.self_attn(q=tokens, k=tokens, v=tokens)
        tokens = self.norms[0](tokens)
        placed_image = image + positions
        tokens = self.norms[1](tokens + self.attn_from_image(tokens + prompts, placed_image, image))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        image = self.norms[3](image + self.attn_to_image(placed_image, tokens + prompts, tokens))
        return tokens, image


class _HeadsApart(nn.Module):
    """An attention's projections, and its heads side by side.

    Args:
        attention: the original.
        shared: all prompts read one image: it is projected, not the tokens.
    """

    def __init__(self, attention: Attention, *, shared: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.out_proj = attention.v_proj, attention.out_proj
        self._shared = shared
        self._heads = attention.num_heads
        width = attention.internal_dim // attention.num_heads
        self._scale = 1.0 / math.sqrt(width)
        self.share: torch.Tensor
        own = torch.eye(attention.num_heads).repeat_interleave(width, dim=1)  # [h, i]
        self.register_buffer("share", own.unsqueeze(1))  # [h, 1, i]

    def _apart(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, t, i] -> [n, h, t, i]: for each head its own channels, zero elsewhere."""
        return tokens.unsqueeze(1) * self.share


class _ImageToToken(_HeadsApart):
    """What the tokens read from the image."""

    def forward(self, tokens: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Tokens [n, t, c], keys and values [n, p, c] or [1, p, c]; returns [n, t, c]."""
        queries = self._apart(self.q_proj(tokens) * self._scale)  # [n, h, t, i]
        if self._shared:
            keys, values = self.k_proj(keys), nn.functional.linear(values, self.v_proj.weight)  # [1, p, i]
        else:
            queries = queries @ self.k_proj.weight  # [n, h, t, c]
        weights = torch.softmax(queries.flatten(1, 2) @ keys.transpose(1, 2), dim=-1)  # [n, h * t, p]
        read = (weights @ values).unflatten(1, (self._heads, -1))  # [n, h, t, i or c]
        if not self._shared:
            read = nn.functional.linear(read, self.v_proj.weight)  # [n, h, t, i]
        mixed = (read * self.share).sum(dim=1) + self.v_proj.bias  # the weights of a softmax add up to 1
        result: torch.Tensor = self.out_proj(mixed)
        return result


class _TokenToImage(_HeadsApart):
    """What the image reads from the tokens."""

    def forward(self, image: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Image [n, p, c] or [1, p, c], keys and values [n, t, c]; returns [n, p, c]."""
        looked_for = self._apart(self.k_proj(keys) * self._scale)  # [n, h, t, i]
        # The weights of each head add up to 1: a share of the bias for each token is the bias for each pixel.
        bias = self.out_proj.bias / self._heads
        given = nn.functional.linear(self._apart(self.v_proj(values)), self.out_proj.weight, bias)
        if self._shared:
            logits = self.q_proj(image) @ looked_for.flatten(1, 2).transpose(1, 2)  # [n, p, h * t]
        else:
            offsets = (looked_for @ self.q_proj.bias).flatten(1).unsqueeze(1)  # [n, 1, h * t]
            looked_for = looked_for @ self.q_proj.weight  # [n, h, t, c]
            logits = image @ looked_for.flatten(1, 2).transpose(1, 2) + offsets
        weights = torch.softmax(logits.unflatten(2, (self._heads, -1)), dim=-1).flatten(2)
        return weights @ given.flatten(1, 2)
