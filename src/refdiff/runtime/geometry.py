"""Pictures into the shapes the encoders are fed, and maps back onto pictures.

Axes: y/x = picture rows/columns, S = side of the padded square = max(y, x). Sizes and offsets are (y, x).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.contracts.session import Float
from refdiff.contracts.spec import SamSpec

Picture = NDArray[np.uint8]
Size = tuple[int, int]


def square_offset(size_yx: Size) -> Size:
    """Where a picture's top left corner lies in its padded square (METHOD §4.1)."""
    side = max(size_yx)
    return (side - size_yx[0]) // 2, (side - size_yx[1]) // 2


def pad_square(image: Picture) -> tuple[Picture, Size]:
    """Centre a picture on a black square.

    Args:
        image: [y, x, 3].

    Returns:
        [S, S, 3], and the offset of the picture in it.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = square_offset((height, width))
    square = np.zeros((side, side, 3), np.uint8)
    square[top : top + height, left : left + width] = image
    return square, (top, left)


def crop_square(values: NDArray[Any], size_yx: Size) -> NDArray[Any]:
    """Undo `pad_square` on a map: [S, S] -> [y, x]."""
    top, left = square_offset(size_yx)
    return values[top : top + size_yx[0], left : left + size_yx[1]]


def diffusion_input(image: Picture, size: int) -> Float:
    """What the VAE encodes: padded, LANCZOS, -1..1.

    Args:
        image: [y, x, 3].
        size: side of the encoder's input in px.

    Returns:
        [1, 3, size, size].
    """
    square, _ = pad_square(image)
    resized = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))
    scaled = resized.astype(np.float32) / 255.0 * 2.0 - 1.0  # [size, size, 3]
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))[None]


def sam_size(size_yx: Size, longest: int) -> Size:
    """SAM's resized picture: longest side to `longest`, rounded half up; never below one pixel."""
    scale = longest / max(size_yx)
    return max(1, int(size_yx[0] * scale + 0.5)), max(1, int(size_yx[1] * scale + 0.5))


def sam_input(image: Picture, spec: SamSpec) -> tuple[Float, Size]:
    """What SAM's encoder sees: longest side resized, normalised, zeros below and to the right.

    Args:
        image: [y, x, 3].
        spec: size and normalisation.

    Returns:
        [1, 3, s, s] with s = spec.image_size, and the (y, x) size of the resized picture in it.
    """
    height, width = resized_yx = sam_size((image.shape[0], image.shape[1]), spec.image_size)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    mean, std = np.asarray(spec.pixel_mean, np.float32), np.asarray(spec.pixel_std, np.float32)
    square = np.zeros((1, 3, spec.image_size, spec.image_size), np.float32)
    square[0, :, :height, :width] = ((resized.astype(np.float32) - mean) / std).transpose(2, 0, 1)
    return square, resized_yx
