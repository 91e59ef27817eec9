"""TinyViT rewritten for export: convolutions with their norms folded in, and attention that TensorRT fuses.

timm's attention picks one of two kernels and keeps its position bias in a cache, neither of which a graph can
hold. Here the bias is a constant [1, h, p, p], added to the logits of the scaled queries, as a mask would be.

Axes: b = windows, h = heads, p = cells of a window, e = channels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.models.tiny_vit import Attention, ConvNorm
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def rewrite_tiny_vit(encoder: nn.Module) -> nn.Module:
    """Return a copy of a `TinyVitEncoder` that computes the same; the original stays as it is."""
    rewritten = copy.deepcopy(encoder).eval()
    for name, module in list(rewritten.named_modules()):
        if isinstance(module, ConvNorm):
            _replace(rewritten, name, fuse_conv_bn_eval(module.conv, module.bn))
        elif isinstance(module, Attention):
            _replace(rewritten, name, _WindowAttention(module))
    return rewritten.requires_grad_(requires_grad=False)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


class _WindowAttention(nn.Module):
    """Attention inside windows, with the norm in front of it: [b, p, e] -> the same shape."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = attention.norm, attention.qkv, attention.proj
        self._heads, self._scale = attention.num_heads, attention.scale
        self._widths = [attention.key_dim, attention.key_dim, attention.val_dim]
        self.bias: torch.Tensor
        biases: Any = attention.attention_biases
        bias = biases[:, attention.attention_bias_idxs]
        self.register_buffer("bias", bias.detach().clone().unsqueeze(0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attend."""
        windows, cells, _ = tokens.shape
        split = self.qkv(self.norm(tokens)).reshape(windows, cells, self._heads, -1).transpose(1, 2)
        q, k, v = split.split(self._widths, dim=-1)  # [b, h, p, e / h] each
        logits = (q * self._scale) @ k.transpose(-2, -1) + self.bias
        mixed = (torch.softmax(logits, dim=-1) @ v).transpose(1, 2)
        result: torch.Tensor = self.proj(mixed.reshape(windows, cells, -1))
        return result
