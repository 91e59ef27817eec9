"""A test pattern whose frame number can be read from its pixels, also after lossy compression.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

import numpy as np

from refdiff.contracts.session import ImageArray

_NUMBER_BITS, _CHECK_BITS = 24, 8
_BITS = _NUMBER_BITS + _CHECK_BITS
SMALLEST_YX = (32, 64)
"""The least size in px: two columns a bit."""


def draw_pattern(number: int, size_yx: tuple[int, int]) -> ImageArray:
    """Draw the frame of a number: a moving square on a gradient, under a row of black and white bits.

    Args:
        number: 0 .. 2^24 - 1; a larger one is drawn modulo 2^24.
        size_yx: at least `SMALLEST_YX`.

    Returns:
        [y, x, 3] RGB.
    """
    height, width = size_yx
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    pixels[..., 2] = 96
    side, band = height // 4, _band(height)
    left, top = number * 3 % max(1, width - side), band + number % max(1, height - band - side)
    pixels[top : top + side, left : left + side] = (255, 200, 0)
    cells = np.arange(width) * _BITS // width
    pixels[:band] = np.where(_bits(number)[cells], 255, 0).astype(np.uint8)[None, :, None]
    return pixels


def read_pattern_number(pixels: ImageArray) -> int | None:
    """Return the number modulo 2^24 that a frame of the pattern has; None where its check bits do not fit.

    Args:
        pixels: [y, x, 3], of any size with at least two columns a bit.
    """
    height, width = pixels.shape[:2]
    row = pixels[_band(height) // 4 : max(1, _band(height) * 3 // 4)].mean(axis=(0, 2))
    centers = ((np.arange(_BITS) + 0.5) * width / _BITS).astype(int)
    bits = row[centers] > 127
    number = int("".join("1" if bit else "0" for bit in bits[:_NUMBER_BITS]), 2)
    return number if bool((_bits(number) == bits).all()) else None


def _band(height: int) -> int:
    return max(8, height // 8)


def _bits(number: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    number %= 1 << _NUMBER_BITS
    check = (number * 167 + 91 ^ number >> 7) % (1 << _CHECK_BITS)
    text = f"{number:0{_NUMBER_BITS}b}{check:0{_CHECK_BITS}b}"
    return np.array([bit == "1" for bit in text])
