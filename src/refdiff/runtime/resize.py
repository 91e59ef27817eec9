"""Resizing along one axis: every target cell is a sum over its few source neighbours.

A matrix product would do the same with all the zeros, and wake the threads of numpy's linear algebra library,
which then spin for milliseconds beside the threads of the graphs.

Mask logits on the picture's pixels: SAM's two bilinear resizes as one, which is exact.

SAM blows its low-resolution logits up to its square, cuts the padding away, and resizes what is left to the
picture. Each is linear along rows and along columns, so together they are two matrices, worked out once for a
picture's size. A row of them mixes at most four neighbours: they are multiplied in narrow bands.

Axes: k = masks, l = side of the low-resolution logits, S = SAM's square, y/x = picture rows/columns.

Pictures into the shapes the encoders are fed, and maps back onto pictures.

Axes: y/x = picture rows/columns, S = side of the padded square = max(y, x). Sizes and offsets are (y, x).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.contracts.session import Float
from refdiff.contracts.spec import SamSpec

_CUBIC_A = -0.75  # the cubic convolution coefficient of torch's bicubic mode


@dataclass(frozen=True)
class Neighbours:
    """What each of t target cells mixes: k source cells."""

    cells: NDArray[np.intp]
    """[k, t]; at a border one cell may stand for several neighbours."""
    weights: NDArray[np.floating]
    """[k, t]; the sums are made in its dtype or the values', whichever is wider."""

    def mix(self, values: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
        """The array with its axis `axis`, from the end (-1, -2, ...), resized to t."""
        behind = (1,) * (-axis - 1)
        return np.asarray(
            sum(
                values.take(cells, axis=axis) * weights.reshape(-1, *behind)
                for cells, weights in zip(self.cells, self.weights, strict=True)
            )
        )


def linear(source: int, target: int) -> Neighbours:
    """Torch's `interpolate(mode="bilinear", align_corners=False)` from `source` cells to `target`.

    The coordinates are float32 as in torch, so that both place an edge on the same pixel.
    """
    scale = np.float32(source / target)
    centre = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    centre = np.clip(centre, 0, source - 1)
    low = centre.astype(np.intp)
    share = (centre - low).astype(np.float32)
    return Neighbours(np.stack([low, np.minimum(low + 1, source - 1)]), np.stack([1 - share, share]))


def cubic(source: int, target: int, *, margin: float) -> Neighbours:
    """Torch's bicubic mode by a scale factor of (target + margin) / source; the border value repeats."""
    centre = (np.arange(target) + 0.5) * source / (target + margin) - 0.5
    cells = np.floor(centre).astype(np.intp) + np.arange(-1, 3)[:, None]  # [4, t]
    return Neighbours(np.clip(cells, 0, source - 1), _cubic(np.abs(centre - cells)))


def upsample_bilinear(array: NDArray[np.floating], size_yx: tuple[int, int]) -> Float:
    """Resize the last two axes as torch's `interpolate(mode="bilinear", align_corners=False)`: no antialias.

    Args:
        array: [..., h, w].
        size_yx: the wanted size.

    Returns:
        [..., y, x].
    """
    values = np.asarray(array, np.float32)
    wide = linear(values.shape[-1], size_yx[1]).mix(values, axis=-1)  # [..., h, x]
    return np.asarray(linear(values.shape[-2], size_yx[0]).mix(wide, axis=-2), np.float32)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic convolution kernel at distances 0..2."""
    a, d = _CUBIC_A, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far)


_BAND = 16
"""Rows of a matrix multiplied at once: few enough that most of their columns are not zero, and that a linear
algebra library does not wake its threads, which would spin beside those of the graphs."""


@dataclass(frozen=True)
class _Band:
    """Neighbouring target cells, and the source cells that they mix."""

    target: slice
    source: slice
    weights: Float
    """[target, source]."""


class MaskResize:
    """From low-resolution logits to the picture.

    Args:
        low_res: l, the logits' side.
        square: S, side of SAM's input.
        resized_yx: size of the resized picture in the square.
        size_yx: the picture's size.
    """

    def __init__(self, *, low_res: int, square: int, resized_yx: Size, size_yx: Size) -> None:
        up = linear(low_res, square).mix(np.eye(low_res, dtype=np.float32), axis=-2)  # [S, l]
        down, across = (
            linear(resized, size).mix(up[:resized], axis=-2)
            for resized, size in zip(resized_yx, size_yx, strict=True)
        )
        self._size_yx = size_yx
        self._down, self._across = tuple(_bands(down)), tuple(_bands(across))
        self._rows = self._down[-1].source.stop
        """Rows of the logits that the picture lies in; below them is padding."""

    def __call__(self, low_res: Float) -> Float:
        """[k, l, l] -> [k, y, x]."""
        masks, (height, width) = len(low_res), self._size_yx
        wide = np.empty((masks, self._rows, width), np.float32)
        for band in self._across:
            np.matmul(low_res[:, : self._rows, band.source], band.weights.T, out=wide[:, :, band.target])
        full = np.empty((masks, height, width), np.float32)
        for band in self._down:
            np.matmul(band.weights, wide[:, band.source], out=full[:, band.target])
        return full


def _bands(weights: Float) -> Iterator[_Band]:
    """A matrix whose rows are zero but for a few neighbours, cut into bands without the zeros."""
    for start in range(0, len(weights), _BAND):
        rows = weights[start : start + _BAND]
        used = np.flatnonzero(rows.any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        target = slice(start, start + len(rows))
        yield _Band(target, source, np.ascontiguousarray(rows[:, source], np.float32))


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
