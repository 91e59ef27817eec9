"""SAM's image encoder and prompt transformer, rewritten to the same sums in another order.

Image encoder: the original adds rows and columns of the position bias to the logits one after the other, on
five axes: two passes over the largest tensor, in a form that TensorRT does not fuse. Here the bias is summed
first, to one tensor on the axes of the logits, as a mask would be, and the attention fuses (docs/engines.md
has what that saves).

Prompt transformer: the original projects every prompt's copy of the image tokens, 4,096 of them at full size,
in each attention. Here

* the first layer projects the image once, because all prompts still share it;
* later layers move the projection to the few prompt tokens: q·(W k) = (Wᵀ q)·k, and the sum over W v of
  attention is W applied to the sum over v. A key's bias adds the same to all logits of a query, which softmax
  ignores.

The prompt transformer holds heads side by side along one axis: a token's vector is repeated for every head
and is zero outside the head's channels. So no image tensor is ever split into heads or transposed.

Axes: b = images or windows, h = heads, y, x = tokens by rows and columns, p = y * x image tokens, n =
prompts, t = prompt tokens, c = channels of a head (encoder) or of a token (transformer), e = channels of a
token (encoder), i = an attention's channels (transformer).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition, window_unpartition
from torch import nn

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT, TwoWayTransformer
    from segment_anything.modeling.image_encoder import Attention, Block
    from segment_anything.modeling.transformer import Attention as TransformerAttention
    from segment_anything.modeling.transformer import TwoWayAttentionBlock


class FusibleImageEncoder(nn.Module):
    """The image encoder on the original's weights: image [1, 3, y, x] in pixels -> embedding."""

    def __init__(self, encoder: ImageEncoderViT) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed, self.neck = encoder.patch_embed, encoder.pos_embed, encoder.neck
        self.blocks = nn.ModuleList(_Block(block) for block in encoder.blocks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image embedding."""
        tokens = self.patch_embed(image)  # [1, y, x, e]
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        embedding: torch.Tensor = self.neck(tokens.permute(0, 3, 1, 2))
        return embedding


class _Block(nn.Module):
    """Attention and an MLP, in windows where the original has them."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = _Attention(block.attn)
        self._window = block.window_size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens [1, y, x, e] to the same shape."""
        tokens = tokens + self._attended(self.norm1(tokens))
        result: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return result

    def _attended(self, tokens: torch.Tensor) -> torch.Tensor:
        if not self._window:
            whole: torch.Tensor = self.attn(tokens)
            return whole
        sides = (tokens.shape[1], tokens.shape[2])
        windows, padded = window_partition(tokens, self._window)
        joined: torch.Tensor = window_unpartition(self.attn(windows), self._window, padded, sides)
        return joined


class _Attention(nn.Module):
    """Attention softmax(q kᵀ / √c + bias) v with the bias q·(row's offset) + q·(column's offset)."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self._heads, self._scale = attention.num_heads, attention.scale
        self._has_positions = attention.use_rel_pos
        if self._has_positions:
            self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens [b, y, x, e] to the same shape."""
        windows, rows, columns, _ = tokens.shape
        split = self.qkv(tokens).reshape(windows, rows * columns, 3, self._heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)  # [b, h, p, c] each
        logits = (q * self._scale) @ k.transpose(-2, -1)  # [b, h, p, p]
        if self._has_positions:
            logits = logits + self._bias(q, rows, columns)
        mixed = (torch.softmax(logits, dim=-1) @ v).transpose(1, 2)  # [b, p, h, c]
        result: torch.Tensor = self.proj(mixed.reshape(windows, rows, columns, -1))
        return result

    def _bias(self, queries: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return [b, h, p, p] for queries [b, h, p, c]: a key's bias is its row's plus its column's."""
        placed = queries.reshape(-1, rows, columns, queries.shape[-1])  # [b * h, y, x, c]
        by_row = torch.einsum("byxc,ykc->byxk", placed, get_rel_pos(rows, rows, self.rel_pos_h))
        by_column = torch.einsum("byxc,xkc->byxk", placed, get_rel_pos(columns, columns, self.rel_pos_w))
        bias = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)  # [b * h, y, x, y, x]
        return bias.reshape(*queries.shape[:2], rows * columns, rows * columns)


class PromptTransformer(nn.Module):
    """The two-way transformer: prompt tokens and one image -> both, transformed."""

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
    """One layer: self-attention of tokens, tokens attend to the image, MLP, image attends to tokens."""

    def __init__(self, layer: TwoWayAttentionBlock, *, shared: bool) -> None:
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.attn_from_image = _ImageToToken(layer.cross_attn_token_to_image, shared=shared)
        self.attn_to_image = _TokenToImage(layer.cross_attn_image_to_token, shared=shared)
        self.norms = nn.ModuleList((layer.norm1, layer.norm2, layer.norm3, layer.norm4))
        self._adds_positions = not layer.skip_first_layer_pe

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, prompts: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens [n, t, c] and image [n, p, c]; the input image may be [1, p, c]."""
        if self._adds_positions:
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


class _SplitHeads(nn.Module):
    """Base of both attentions: the projections, and heads side by side.

    Args:
        attention: the original.
        shared: all prompts read one image, so the image is projected instead of the tokens.
    """

    def __init__(self, attention: TransformerAttention, *, shared: bool) -> None:
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

    def _split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map [n, t, i] to [n, h, t, i]: for each head its channels, zero elsewhere."""
        return tokens.unsqueeze(1) * self.share


class _ImageToToken(_SplitHeads):
    """Attention of the tokens to the image."""

    def forward(self, tokens: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Map tokens [n, t, c], with keys and values [n, p, c] or [1, p, c], to [n, t, c]."""
        queries = self._split_heads(self.q_proj(tokens) * self._scale)  # [n, h, t, i]
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


class _TokenToImage(_SplitHeads):
    """Attention of the image to the tokens."""

    def forward(self, image: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Map the image [n, p, c] or [1, p, c], with keys and values [n, t, c], to [n, p, c]."""
        looked_for = self._split_heads(self.k_proj(keys) * self._scale)  # [n, h, t, i]
        # The weights of each head add up to 1: a share of the bias for each token is the bias for each pixel.
        bias = self.out_proj.bias / self._heads
        given = nn.functional.linear(self._split_heads(self.v_proj(values)), self.out_proj.weight, bias)
        if self._shared:
            logits = self.q_proj(image) @ looked_for.flatten(1, 2).transpose(1, 2)  # [n, p, h * t]
        else:
            offsets = (looked_for @ self.q_proj.bias).flatten(1).unsqueeze(1)  # [n, 1, h * t]
            looked_for = looked_for @ self.q_proj.weight  # [n, h, t, c]
            logits = image @ looked_for.flatten(1, 2).transpose(1, 2) + offsets
        weights = torch.softmax(logits.unflatten(2, (self._heads, -1)), dim=-1).flatten(2)
        return weights @ given.flatten(1, 2)
