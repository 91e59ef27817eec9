"""The images that CLIP encodes (METHOD §5): weighted by the ramp, cut out, resized, normalized.

In: an image [y, x, 3] uint8 RGB. Out: pixels [1, 3, y, x] float32 in CLIP's normalization.
The order of the release is kept: ramp and mask in float, cut to the box, truncate to uint8, resize, scale.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from refdiff.contracts.options import CropOptions
from refdiff.contracts.session import Bool, ImageArray
from refdiff.contracts.spec import ClipSpec
from refdiff.runtime.phrase import direction

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
