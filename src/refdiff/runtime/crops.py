"""Cut a candidate out of the picture for CLIP (METHOD §5).

Picture [y, x, 3] uint8 in, resized crop [y, x, 3] uint8 out. The released order of operations is kept:
ramp and mask in float, cut to the box, truncate to uint8, resize.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.contracts.session import Bool

Picture = NDArray[np.uint8]


def masked_crop(
    image: Picture, mask: Bool, box_xyxy_px: NDArray[np.int64], ramp: NDArray[np.float64]
) -> Picture:
    """The candidate on black, weighted by the position ramp, cut to its box.

    Args:
        image: [y, x, 3].
        mask: [y, x].
        box_xyxy_px: [4], inclusive corners of the mask.
        ramp: [x], 0..1.
    """
    x0, y0, x1, y1 = (int(corner) for corner in box_xyxy_px)
    rows, columns = slice(y0, y1 + 1), slice(x0, x1 + 1)
    weights = mask[rows, columns] * ramp[columns]  # [y, x]
    return (image[rows, columns] * weights[..., None]).astype(np.uint8)


def resize_shorter_side(image: Picture, side: int) -> Picture:
    """Shorter side to `side`, aspect kept, as `torchvision.transforms.Resize(side)` on a Pillow picture."""
    height, width = image.shape[:2]
    upright = width <= height
    return _resized(
        image, (side, int(side * height / width)) if upright else (int(side * width / height), side)
    )


def letterbox(image: Picture, side: int) -> Picture:
    """Longer side to `side`, aspect kept, centred on a black square."""
    height, width = image.shape[:2]
    longer = max(height, width)
    size_xy = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    square = np.zeros((side, side, 3), dtype=np.uint8)
    left, top = (side - size_xy[0]) // 2, (side - size_xy[1]) // 2
    square[top : top + size_xy[1], left : left + size_xy[0]] = _resized(image, size_xy)
    return square


def shrink_longer_side(image: Picture, limit: int, *, least: int) -> Picture:
    """Longer side to at most `limit` px, aspect kept, no side below `least` px; 0: left alone."""
    return _resized(image, shrunk_size(image.shape[:2], limit, least=least)[::-1])


def shrunk_size(size_yx: tuple[int, int], limit: int, *, least: int) -> tuple[int, int]:
    """What `shrink_longer_side` makes of a picture's size."""
    if limit <= 0:
        return size_yx
    scale = min(1.0, limit / max(size_yx))
    height, width = (max(least, round(side * scale)) for side in size_yx)
    return height, width


def _resized(image: Picture, size_xy: tuple[int, int]) -> Picture:
    if size_xy == image.shape[1::-1]:
        return image
    # Pillow's BILINEAR widens its filter when it shrinks: the antialiased resize of the release.
    return np.asarray(Image.fromarray(image).resize(size_xy, Image.Resampling.BILINEAR))
