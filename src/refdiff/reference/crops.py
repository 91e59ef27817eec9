"""The pictures CLIP is shown (METHOD §5): ramped, cut out, resized, normalised.

In: a picture [y, x, 3] uint8 RGB. Out: pixels [1, 3, y, x] float32 in CLIP's normalisation.
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
from refdiff.contracts.session import Bool
from refdiff.contracts.spec import ClipSpec
from refdiff.runtime.phrase import direction

Picture = NDArray[np.uint8]
Ramp = NDArray[np.float64]

_VERTICAL = ("top", "bottom")
_FALLING = ("left", "top")


def named_side(text: str, options: CropOptions) -> str | None:
    """The side of the picture the ramp favours; the paper's text knows top and bottom too (METHOD §5, §8)."""
    side = direction(text, word_boundaries=options.word_boundaries)
    if side is not None or not options.ramp_on_soft:
        return side
    return next((word for word in _VERTICAL if re.search(rf"\b{word}\b", text.lower())), None)


def position_ramp(side: str | None, size_yx: tuple[int, int]) -> Ramp:
    """Weights 0..1 of a place: 1 to 0 over the first two thirds, then 0, seen from the named side.

    Args:
        side: "left", "right", "top" or "bottom"; None weighs everything 1.
        size_yx: of the picture.

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


def ramped(image: Picture, ramp: Ramp) -> Picture:
    """The whole picture under the ramp [y, x]."""
    return (image * ramp[:, :, None]).astype(np.uint8)


def cut_out(image: Picture, ramp: Ramp, mask: Bool, box_xyxy_px: NDArray[np.int64]) -> Picture:
    """What the mask [y, x] covers, under the ramp [y, x], on black, cut to the mask's box."""
    x0, y0, x1, y1 = box_xyxy_px
    alone = image * ramp[:, :, None] * mask[:, :, None]
    return alone[y0 : y1 + 1, x0 : x1 + 1].astype(np.uint8)


def fit_shorter_side(image: Picture, side: int) -> Picture:
    """Shorter side to `side`, aspect kept, however long the other side becomes."""
    return _resized(image, [side])


def letterbox(image: Picture, side: int) -> Picture:
    """Longer side to `side`, aspect kept, centred on a black square (METHOD §9)."""
    fitted = _fit_longer_side(image, side, least=1)
    height, width, _ = fitted.shape
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[top : top + height, left : left + width] = fitted
    return square


def limit_longer_side(image: Picture, limit: int, *, least: int) -> Picture:
    """Longer side to at most `limit` px, no side below `least` px; 0 leaves the picture at its own size."""
    if limit == 0 or (max(image.shape[:2]) <= limit and min(image.shape[:2]) >= least):
        return image
    return _fit_longer_side(image, min(limit, max(image.shape[:2])), least=least)


def normalised(image: Picture, clip: ClipSpec) -> torch.Tensor:
    """CLIP's pixels of a picture: [1, 3, y, x]."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    batch: torch.Tensor = vision.normalize(pixels, list(clip.pixel_mean), list(clip.pixel_std))[None]
    return batch


def _fit_longer_side(image: Picture, side: int, *, least: int) -> Picture:
    longer = max(image.shape[:2])
    size_yx = [max(least, round(length * side / longer)) for length in image.shape[:2]]
    return _resized(image, size_yx)


def _resized(image: Picture, size: list[int]) -> Picture:
    """Resize with torchvision on a Pillow picture, as released; Pillow's bilinear filter is antialiased."""
    return np.asarray(vision.resize(Image.fromarray(image), size, InterpolationMode.BILINEAR, antialias=True))
