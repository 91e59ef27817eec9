"""The image encoders of small SAMs, rewritten for export to the same sums in another order.

Norms behind convolutions are folded into these.

TinyViT: timm's attention picks one of two kernels and keeps its position bias in a cache. A graph can hold
neither. Here the bias is a constant [1, h, p, p], added to the logits of the scaled queries, as a mask would
be, and the attention fuses.

EfficientViT: the sum of weights that linear attention divides by is a product of its own instead of one more
channel of the values, so that nothing is padded and cut; and the neck's bicubic resizes are products with
constant matrices, because TensorRT and ONNX Runtime differ in how they resize.

Axes: b = batch or windows, h = heads, p = cells, e = channels, d = channels of a head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.efficientvit_mit import ConvNormAct, LiteMLA
from timm.models.tiny_vit import Attention, ConvNorm
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from refdiff.networks.efficient_vit import Resize


def rewrite_small_encoder(encoder: nn.Module) -> nn.Module:
    """Return a copy of a TinyViT or EfficientViT that computes the same; the original stays as it is."""
    rewritten = copy.deepcopy(encoder).eval()
    for name, module in list(rewritten.named_modules()):
        if isinstance(module, ConvNorm):
            _replace(rewritten, name, fuse_conv_bn_eval(module.conv, module.bn))
        elif isinstance(module, ConvNormAct) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
        elif isinstance(module, tuple(_REWRITTEN)):
            _replace(rewritten, name, _REWRITTEN[type(module)](module))
    return rewritten.requires_grad_(requires_grad=False)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


class _WindowAttention(nn.Module):
    """TinyViT's attention inside windows, with the norm in front of it: [b, p, e] -> the same shape."""

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
        q, k, v = split.split(self._widths, dim=-1)  # [b, h, p, d] each
        logits = (q * self._scale) @ k.transpose(-2, -1) + self.bias
        mixed = (torch.softmax(logits, dim=-1) @ v).transpose(1, 2)
        result: torch.Tensor = self.proj(mixed.reshape(windows, cells, -1))
        return result


class _LinearAttention(nn.Module):
    """EfficientViT's attention, [b, e, y, x] -> the same shape: relu(q) · relu(k) in place of a softmax."""

    def __init__(self, attention: LiteMLA) -> None:
        super().__init__()
        self.qkv, self.aggreg, self.proj = attention.qkv, attention.aggreg, attention.proj
        self._width, self._epsilon = attention.dim, attention.eps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Attend."""
        batch, _, height, width = image.shape
        once = self.qkv(image)
        scales = torch.cat([once, *(grouped(once) for grouped in self.aggreg)], dim=1)
        heads = scales.reshape(batch, -1, 3 * self._width, height * width)
        q, k, v = heads.split(self._width, dim=2)  # [b, h, d, p] each
        q, k = torch.relu(q), torch.relu(k)
        sums = (v @ k.transpose(-2, -1)) @ q
        weights = k.sum(dim=-1, keepdim=True).transpose(-2, -1) @ q  # [b, h, 1, p]
        mixed = (sums / (weights + self._epsilon)).reshape(batch, -1, height, width)
        result: torch.Tensor = self.proj(mixed)
        return result


class _ResizeByProducts(nn.Module):
    """A resize of square maps as two products with one constant matrix."""

    def __init__(self, resize: Resize) -> None:
        super().__init__()
        self.matrix: torch.Tensor
        eye = torch.eye(resize.inputs)[None, None]
        matrix = F.interpolate(eye, (resize.side, resize.inputs), mode="bicubic", align_corners=False)
        self.register_buffer("matrix", matrix[0, 0])
        self._keeps = resize.inputs == resize.side

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map [b, e, y, x] to the new side."""
        return states if self._keeps else self.matrix @ states @ self.matrix.transpose(0, 1)


_REWRITTEN: dict[type, Any] = {
    Attention: _WindowAttention,
    LiteMLA: _LinearAttention,
    Resize: _ResizeByProducts,
}
