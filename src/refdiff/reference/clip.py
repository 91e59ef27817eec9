"""CLIP's vectors of texts, of candidates cut out, and of candidates in place (METHOD §3, §5, §6).

In: texts; an image [y, x, 3] uint8 RGB with masks [n, y, x]. Out: unit vectors.

Axes: n = candidates (or texts), p = patches (row by row), t = tokens (class tokens, then patches),
w = width of a token, e = joint embedding, y/x = rows/columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from refdiff.contracts.options import CropOptions
from refdiff.contracts.session import Bool, Float, ImageArray
from refdiff.contracts.stack import ModelStack
from refdiff.reference.crops import (
    Ramp,
    apply_ramp,
    cut_out,
    fit_shorter_side,
    letterbox,
    limit_longer_side,
    normalize,
)
from refdiff.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer


@torch.no_grad()
def text_vectors(stack: ModelStack, tokenizer: Tokenizer, texts: Sequence[str]) -> Float:
    """Encode texts, without a template: [n, e]."""
    ids = np.stack([tokenizer.clip_ids(text)[0] for text in texts])
    return _unit(stack.clip.encode_text(torch.from_numpy(ids).long().to(_device(stack))))


@torch.no_grad()
def hard_vectors(
    stack: ModelStack,
    options: CropOptions,
    image: ImageArray,
    masks: Bool,
    boxes_xyxy_px: NDArray[np.int64],
    ramp: Ramp,
) -> Float:
    """Encode every candidate cut out, one after the other: [n, e] (METHOD §5)."""
    spec, visual = stack.spec.clip, stack.clip.visual
    fit = letterbox if options.letterbox else fit_shorter_side
    vectors = [np.zeros((0, spec.embed_dim), dtype=np.float32)]
    for mask, box in zip(masks, boxes_xyxy_px, strict=True):
        crop = fit(cut_out(image, ramp, mask, box), spec.image_size)
        tokens = embed(visual, normalize(crop, spec).to(_device(stack)), classes=1)
        vectors.append(_unit(read_classes(visual, tokens, classes=1)))
    return np.concatenate(vectors)


@torch.no_grad()
def soft_vectors(
    stack: ModelStack, options: CropOptions, image: ImageArray, masks: Bool, ramp: Ramp
) -> Float:
    """Encode every candidate in place, by a class token that sees its patches alone: [n, e] (METHOD §6)."""
    spec, visual, n = stack.spec.clip, stack.clip.visual, len(masks)
    if n == 0:
        return np.zeros((0, spec.embed_dim), dtype=np.float32)
    seen = limit_longer_side(apply_ramp(image, ramp), options.soft_long_side, least=spec.patch_size)
    pixels = normalize(seen, spec).to(_device(stack))
    tokens = embed(visual, pixels, classes=n)  # [1, n+p, w]
    grid_yx = (pixels.shape[2] // spec.patch_size, pixels.shape[3] // spec.patch_size)
    blocked = class_attention(masks_on_grid(masks, grid_yx)).to(tokens.device)  # [t, t]
    return _unit(read_classes(visual, tokens, classes=n, attention=blocked))


def embed(visual: VisionTransformer, pixels: torch.Tensor, *, classes: int) -> torch.Tensor:
    """Return class token copies and patches with their positions, through `ln_pre`: [1, classes + p, w]."""
    grid = visual.conv1(pixels)  # [1, w, y, x]; a partial patch is dropped
    patches = grid.flatten(2).transpose(1, 2)  # [1, p, w]
    class_position, patch_positions = positions(visual, (grid.shape[2], grid.shape[3]), pixels.shape[2:])
    class_token = (visual.class_embedding + class_position).expand(1, classes, -1)
    tokens: torch.Tensor = visual.ln_pre(torch.cat([class_token, patches + patch_positions], dim=1))
    return tokens


def positions(
    visual: VisionTransformer, grid_yx: tuple[int, int], size_yx: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class token's position [w] and the patches' [p, w], bicubically fitted to the grid.

    As released, after DINO: the scale factor carries a margin of 0.1 patch, and the table is taken as it is
    only for the training grid under an image that is square to the pixel.
    """
    table = visual.positional_embedding
    side = visual.grid_size[0]
    height, width = size_yx
    if grid_yx == (side, side) and height == width:
        return table[0], table[1:]
    square = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, w, g, g]
    factors = ((grid_yx[0] + 0.1) / side, (grid_yx[1] + 0.1) / side)
    fitted = F.interpolate(square, scale_factor=factors, mode="bicubic")  # [1, w, y, x]
    return table[0], fitted[0].flatten(1).T


def masks_on_grid(masks: Bool, grid_yx: tuple[int, int]) -> torch.Tensor:
    """Sample the masks [n, y, x] NEAREST on the patch grid: [n, p]."""
    sampled = F.interpolate(torch.from_numpy(masks).float()[:, None], grid_yx, mode="nearest")
    return sampled.flatten(1) > 0


def class_attention(seen: torch.Tensor) -> torch.Tensor:
    """Return the additive attention mask [t, t] (METHOD §6).

    Class token i sees itself and the patches of mask i; patches see patches only.

    Args:
        seen: [n, p], the masks on the patch grid.
    """
    n, p = seen.shape
    allowed = torch.cat(
        [
            torch.cat([torch.eye(n, dtype=torch.bool), seen], dim=1),
            torch.cat([torch.zeros(p, n, dtype=torch.bool), torch.ones(p, p, dtype=torch.bool)], dim=1),
        ]
    )
    return torch.zeros(n + p, n + p).masked_fill(~allowed, float("-inf"))


def read_classes(
    visual: VisionTransformer, tokens: torch.Tensor, *, classes: int, attention: torch.Tensor | None = None
) -> torch.Tensor:
    """Run all blocks and return the class tokens in the joint embedding: [classes, e]."""
    for block in visual.transformer.resblocks:
        tokens = block(tokens, attn_mask=attention)
    vectors: torch.Tensor = visual.ln_post(tokens[0, :classes]) @ visual.proj
    return vectors


def _unit(vectors: torch.Tensor) -> Float:
    unit: Float = F.normalize(vectors, dim=-1).cpu().numpy()
    return unit


def _device(stack: ModelStack) -> torch.device:
    device: torch.device = stack.clip.visual.conv1.weight.device
    return device
