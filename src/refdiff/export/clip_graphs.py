"""CLIP's graphs: text vectors, and image vectors for crops and masked attention (METHOD §3, §5, §6).

Both towers keep their weights and modules; only their attention is written out under an additive mask, so
that it exports to plain products and one softmax. Q is scaled before the product (TensorRT#4333), and a
blocked pair gets a finite value: exact in half precision, and no NaN where a whole row is blocked
(onnxscript#2479).

Axes: b = batch, p = patches, c = class tokens, t = tokens (c + p in the image tower), w = width = heads *
head width, e = joint embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from refdiff.contracts.graphs import BLOCKED
from refdiff.errors import InputError

if TYPE_CHECKING:
    import open_clip


def causal_mask(length: int) -> torch.Tensor:
    """Return [1, t, t]: 0 where the key is at or before the query, `BLOCKED` where it is after it."""
    return torch.full((1, length, length), BLOCKED).triu(1)


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, *, heads: int
) -> torch.Tensor:
    """Compute softmax attention with one mask for all heads.

    Args:
        query: [b, t, w], not yet scaled.
        key: [b, t, w].
        value: [b, t, w].
        mask: [b or 1, t, t], added to the logits.
        heads: number of heads that w is split into.

    Returns:
        [b, t, w], before the output projection.
    """
    width = query.shape[-1] // heads
    query, key, value = (
        states.unflatten(-1, (heads, width)).transpose(1, 2) for states in (query * width**-0.5, key, value)
    )  # [b, heads, t, w / heads]
    logits = query @ key.transpose(2, 3) + mask.unsqueeze(1)
    return (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """A residual block of open_clip, with a mask per image."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map tokens x [b, t, w] and an additive mask [b or 1, t, t] to [b, t, w]."""
        block, attn = self.block, self.block.attn
        packed = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)  # [b, t, 3w]
        query, key, value = packed.chunk(3, dim=-1)
        mixed = masked_attention(query, key, value, mask, heads=attn.num_heads)
        x = x + block.ls_1(attn.out_proj(mixed))
        out: torch.Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return out


class ClipText(nn.Module):
    """Token ids [b, k] and the end token's index [b], both int32 -> vectors [b, e], not normalized."""

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.blocks = nn.ModuleList(Block(block) for block in clip.transformer.resblocks)
        self.ln_final = clip.ln_final
        projection = clip.text_projection
        self.projection: torch.Tensor
        self.positions: torch.Tensor
        self.causal: torch.Tensor
        self.steps: torch.Tensor
        length = clip.positional_embedding.shape[0]
        with torch.no_grad():
            matrix = projection.weight.T if isinstance(projection, nn.Linear) else projection
            self.register_buffer("projection", matrix.detach().clone())
            self.register_buffer("positions", clip.positional_embedding.detach().clone())
        self.register_buffer("causal", causal_mask(length))
        self.register_buffer("steps", torch.arange(length, dtype=torch.int32))

    def forward(self, ids: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Return the end token's state, projected."""
        x = self.token_embedding(ids) + self.positions  # [b, k, w]
        for block in self.blocks:
            x = block(x, self.causal)
        chosen = (self.steps == end.unsqueeze(1)).to(x.dtype).unsqueeze(1)  # [b, 1, k], one 1 per row
        state = (chosen @ self.ln_final(x)).squeeze(1)
        vector: torch.Tensor = state @ self.projection
        return vector


class ClipImage(nn.Module):
    """Flattened patches, their positions, class slots, a mask -> a vector per class token, not normalized.

    Patches [b, p, 3*P*P] and positions [b, p, w] differ by image, so images with different patch grids share
    a call once they are padded to one size and the mask [b, t, t] hides the padding. `slots` [b, c, 1] is all
    zero: only its shape matters, the number of class tokens. Class tokens come first.
    """

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        visual = clip.visual
        if getattr(visual, "attn_pool", None) is not None or visual.pool_type != "tok":
            raise InputError(
                "got a CLIP image tower that pools its tokens, expected one that reads its class token"
            )
        self.ln_pre, self.ln_post = visual.ln_pre, visual.ln_post
        self.blocks = nn.ModuleList(Block(block) for block in visual.transformer.resblocks)
        self.patch_weight: torch.Tensor
        self.class_token: torch.Tensor
        self.projection: torch.Tensor
        with torch.no_grad():
            # A patch is laid out as the convolution reads it: channel, row, column.
            self.register_buffer("patch_weight", visual.conv1.weight.flatten(1).T.detach().clone())
            self.register_buffer(
                "class_token", (visual.class_embedding + visual.positional_embedding[0]).detach().clone()
            )
            self.register_buffer("projection", visual.proj.detach().clone())

    def forward(
        self, patches: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return vectors [b, c, e]."""
        embedded = patches @ self.patch_weight + positions  # [b, p, w]
        x = self.ln_pre(torch.cat([slots + self.class_token, embedded], dim=1))  # [b, t, w]
        for block in self.blocks:
            x = block(x, mask)
        vectors: torch.Tensor = self.ln_post(x[:, : slots.shape[1]]) @ self.projection
        return vectors
