"""SAM's image encoder, with the position biases of an attention summed before they meet its logits.

The original adds rows and columns of the bias to the logits one after the other, on five axes: the same sum
in two passes over the largest tensor, and a form that TensorRT fuses into no attention. Here the bias is one
tensor on the axes of the logits, as a mask would be, and the attention fuses (docs/engines.md has what that
saves).

Axes: b = pictures or windows of one, h = heads, y, x = tokens by rows and columns, p = y * x, c = channels of
a head, e = channels of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition, window_unpartition
from torch import nn

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT
    from segment_anything.modeling.image_encoder import Attention, Block


class FusibleImageEncoder(nn.Module):
    """The encoder on the original's weights: [1, 3, y, x] in pixels in, embedding out."""

    def __init__(self, encoder: ImageEncoderViT) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed, self.neck = encoder.patch_embed, encoder.pos_embed, encoder.neck
        self.blocks = nn.ModuleList(_Block(block) for block in encoder.blocks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The image embedding."""
        tokens = self.patch_embed(image)  # [1, y, x, e]
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        embedding: torch.Tensor = self.neck(tokens.permute(0, 3, 1, 2))
        return embedding


class _Block(nn.Module):
    """Attention and a network; in windows where the original has them."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = _Attention(block.attn)
        self._window = block.window_size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[1, y, x, e] in and out."""
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
    """softmax(q kᵀ / √c + bias) v, the bias q·(row's offset) + q·(column's offset)."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self._heads, self._scale = attention.num_heads, attention.scale
        self._is_placed = attention.use_rel_pos
        if self._is_placed:
            self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[b, y, x, e] in and out."""
        windows, rows, columns, _ = tokens.shape
        split = self.qkv(tokens).reshape(windows, rows * columns, 3, self._heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)  # [b, h, p, c] each
        logits = (q * self._scale) @ k.transpose(-2, -1)  # [b, h, p, p]
        if self._is_placed:
            logits = logits + self._bias(q, rows, columns)
        mixed = (torch.softmax(logits, dim=-1) @ v).transpose(1, 2)  # [b, p, h, c]
        result: torch.Tensor = self.proj(mixed.reshape(windows, rows, columns, -1))
        return result

    def _bias(self, queries: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """[b, h, p, p] of queries [b, h, p, c]; a key's bias is that of its row plus that of its column."""
        placed = queries.reshape(-1, rows, columns, queries.shape[-1])  # [b * h, y, x, c]
        by_row = torch.einsum("byxc,ykc->byxk", placed, get_rel_pos(rows, rows, self.rel_pos_h))
        by_column = torch.einsum("byxc,xkc->byxk", placed, get_rel_pos(columns, columns, self.rel_pos_w))
        bias = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)  # [b * h, y, x, y, x]
        return bias.reshape(*queries.shape[:2], rows * columns, rows * columns)
