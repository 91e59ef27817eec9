"""CLIP's vectors of texts, of candidates cut out, and of candidates in place (METHOD §3, §5, §6).

In: texts; an image [y, x, 3] uint8 RGB with masks [n, y, x]. Out: unit vectors.
A crop is made in the order of the release: ramp and mask in float, cut to the box, truncated to uint8,
resized, scaled.

Axes: n = candidates (or texts), p = patches (row by row), t = tokens (class tokens, then patches),
w = width of a token, e = joint embedding, y/x = rows/columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from refdiff.contracts.options import CropOptions
from refdiff.contracts.session import Bool, Float, ImageArray
from refdiff.contracts.spec import ClipSpec
from refdiff.contracts.stack import ModelStack
from refdiff.runtime.phrase import direction
from refdiff.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer


Ramp = NDArray[np.float64]

_VERTICAL = ("top", "bottom")
_FALLING = ("left", "top")


def named_side(text: str, options: CropOptions) -> str | None:
    """Return the side that the ramp favors; the paper's text has top and bottom too (METHOD §5, §8)."""
    side = direction(text, word_boundaries=options.word_boundaries)
    if side is not None or not options.ramp_on_soft:
        return side
    return next((word for word in _VERTICAL if re.search(rf"\b{word}\b", text.lower())), None)


def position_ramp(side: str | None, size_yx: tuple[int, int]) -> Ramp:
    """Return weights 0..1: from the named side 1 to 0 over two thirds of the image, then 0 (METHOD §5).

    Args:
        side: "left", "right", "top" or "bottom"; None weighs everything 1.
        size_yx: the image's size in px.

    Returns:
        [y, x].
    """
    if side is None:
        return np.ones(size_yx)
    length = size_yx[0] if side in _VERTICAL else size_yx[1]
    reach = 2 * length // 3
    rest = np.zeros(length - reach)
    if side in _FALLING:
        weights = np.concatenate([np.linspace(1, 0, reach), rest])
    else:
        weights = np.concatenate([rest, np.linspace(0, 1, reach)])
    column = weights[:, None] if side in _VERTICAL else weights[None, :]
    return np.broadcast_to(column, size_yx)


def apply_ramp(image: ImageArray, ramp: Ramp) -> ImageArray:
    """Weigh the whole image by the ramp [y, x]."""
    return (image * ramp[:, :, None]).astype(np.uint8)


def cut_out(image: ImageArray, ramp: Ramp, mask: Bool, box_xyxy_px: NDArray[np.int64]) -> ImageArray:
    """Cut out what the mask [y, x] covers, weighted by the ramp [y, x], on black."""
    x0, y0, x1, y1 = box_xyxy_px
    alone = image * ramp[:, :, None] * mask[:, :, None]
    return alone[y0 : y1 + 1, x0 : x1 + 1].astype(np.uint8)


def fit_shorter_side(image: ImageArray, side: int) -> ImageArray:
    """Resize the shorter side to `side` px, aspect kept, however long the other side becomes."""
    return _resize(image, [side])


def letterbox(image: ImageArray, side: int) -> ImageArray:
    """Resize the longer side to `side` px, aspect kept, centered on a black square (METHOD §9)."""
    fitted = _fit_longer_side(image, side, least=1)
    height, width, _ = fitted.shape
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[top : top + height, left : left + width] = fitted
    return square


def limit_longer_side(image: ImageArray, limit: int, *, least: int) -> ImageArray:
    """Resize the longer side to at most `limit` px, no side below `least` px; 0 keeps the image's size."""
    if limit == 0 or (max(image.shape[:2]) <= limit and min(image.shape[:2]) >= least):
        return image
    return _fit_longer_side(image, min(limit, max(image.shape[:2])), least=least)


def normalize(image: ImageArray, clip: ClipSpec) -> torch.Tensor:
    """Return CLIP's pixels of an image: [1, 3, y, x]."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    batch: torch.Tensor = vision.normalize(pixels, list(clip.pixel_mean), list(clip.pixel_std))[None]
    return batch


def _fit_longer_side(image: ImageArray, side: int, *, least: int) -> ImageArray:
    longer = max(image.shape[:2])
    size_yx = [max(least, round(length * side / longer)) for length in image.shape[:2]]
    return _resize(image, size_yx)


def _resize(image: ImageArray, size: list[int]) -> ImageArray:
    """Resize with torchvision on a Pillow image, as released; Pillow's bilinear filter is antialiased."""
    return np.asarray(vision.resize(Image.fromarray(image), size, InterpolationMode.BILINEAR, antialias=True))


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
