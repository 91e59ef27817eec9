"""Resize images, maps and masks: the inputs of the encoders, and their outputs back on the image.

Along an axis every target cell is a sum over its few source neighbors. A matrix product over whole axes would
wake the threads of numpy's linear algebra library, which spin for milliseconds and slow the graphs' threads.

SAM upsamples its low-resolution logits to its square, cuts the padding off, and resizes the rest to the
image. Each step is linear along rows and along columns, so together they are two matrices, computed once for
an image size: `MaskResize`, which is exact. A row of them mixes at most four neighbors: they are multiplied
in narrow bands.

Axes: k = masks, l = side of the low-resolution logits, y/x = image rows/columns, S = side of the padded
square = max(y, x), or of SAM's square. Sizes and offsets are (y, x).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.contracts.session import Float, ImageArray
from refdiff.contracts.spec import SamSpec

Size = tuple[int, int]

_BAND_PX = 1 << 20  # pixels of an image or a map resized together: the memory of a resize besides its result

_CUBIC_A = -0.75  # the cubic convolution coefficient of torch's bicubic mode


@dataclass(frozen=True)
class Neighbours:
    """The k source cells that each of t target cells mixes."""

    cells: NDArray[np.intp]
    """[k, t]; at a border one cell may stand for several neighbors."""
    weights: NDArray[np.floating]
    """[k, t]; sums are computed in its dtype or that of the values, whichever is wider."""

    def part(self, targets: slice) -> Neighbours:
        """Return the neighbors of some of the target cells."""
        return Neighbours(self.cells[:, targets], self.weights[:, targets])

    def mix(self, values: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
        """Resize the array's axis `axis`, counted from the end (-1, -2, ...), to t."""
        trailing = (1,) * (-axis - 1)
        return np.asarray(
            sum(
                values.take(cells, axis=axis) * weights.reshape(-1, *trailing)
                for cells, weights in zip(self.cells, self.weights, strict=True)
            )
        )


def linear(source: int, target: int) -> Neighbours:
    """Resize as torch's `interpolate(mode="bilinear", align_corners=False)` from `source` cells to `target`.

    Coordinates are float32 as in torch, so that both put an edge on the same pixel.
    """
    scale = np.float32(source / target)
    center = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    center = np.clip(center, 0, source - 1)
    low = center.astype(np.intp)
    share = (center - low).astype(np.float32)
    return Neighbours(np.stack([low, np.minimum(low + 1, source - 1)]), np.stack([1 - share, share]))


def cubic(source: int, target: int, *, margin: float) -> Neighbours:
    """Resize as torch's bicubic mode by a factor of (target + margin) / source; the border value repeats."""
    center = (np.arange(target) + 0.5) * source / (target + margin) - 0.5
    cells = np.floor(center).astype(np.intp) + np.arange(-1, 3)[:, None]  # [4, t]
    return Neighbours(np.clip(cells, 0, source - 1), _cubic(np.abs(center - cells)))


def upsample_bilinear(
    array: NDArray[np.floating], size_yx: Size, window: tuple[slice, slice] = (slice(None), slice(None))
) -> Float:
    """Resize the last two axes as torch's `interpolate(mode="bilinear", align_corners=False)`: no antialias.

    Args:
        array: [..., h, w].
        size_yx: the wanted size.
        window: the rows and columns of the result that are computed.

    Returns:
        [..., y, x], of the window.
    """
    values = np.asarray(array, np.float32)
    rows, columns = (
        linear(source, target).part(part)
        for source, target, part in zip(values.shape[-2:], size_yx, window, strict=True)
    )
    wide = columns.mix(values, axis=-1)  # [..., h, x]
    shape = (*values.shape[:-2], rows.cells.shape[1], columns.cells.shape[1])
    result = np.empty(shape, np.float32)
    for band in bands(shape[-2], math.prod(shape) // max(1, shape[-2])):
        result[..., band, :] = rows.part(band).mix(wide, axis=-2)
    return result


def bands(rows: int, row_px: int, multiple: int = 1) -> Iterator[slice]:
    """Cut rows of `row_px` pixels into slices of about a million pixels, `multiple` rows or a multiple."""
    step = max(1, _BAND_PX // max(1, row_px * multiple)) * multiple
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cubic convolution kernel at distances 0..2."""
    a, d = _CUBIC_A, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far)


_BAND = 16
"""Rows of a matrix multiplied at once: few enough that most of their columns are not zero, and that a linear
algebra library does not wake its threads, which would slow those of the graphs."""


@dataclass(frozen=True)
class _Band:
    """Neighboring target cells, and the source cells that they mix."""

    target: slice
    source: slice
    weights: Float
    """[target, source]."""


class MaskResize:
    """Resizes low-resolution logits to the image.

    Args:
        low_res: l, the logits' side.
        square: S, side of SAM's input.
        resized_yx: size of the resized image in the square.
        size_yx: the image's size.
    """

    def __init__(self, *, low_res: int, square: int, resized_yx: Size, size_yx: Size) -> None:
        up = linear(low_res, square).mix(np.eye(low_res, dtype=np.float32), axis=-2)  # [S, l]
        down, across = (
            linear(resized, size).mix(up[:resized], axis=-2)
            for resized, size in zip(resized_yx, size_yx, strict=True)
        )
        self._size_yx = size_yx
        self._down, self._across = tuple(_cut_bands(down)), tuple(_cut_bands(across))
        self._rows = self._down[-1].source.stop
        """Rows of the logits that the image covers; below them is padding."""

    def __call__(self, low_res: Float) -> Float:
        """Resize [k, l, l] to [k, y, x]."""
        return np.concatenate([logits for _, logits in self.bands(low_res)], axis=1)

    def bands(self, low_res: Float) -> Iterator[tuple[slice, Float]]:
        """Resize [k, l, l], and yield bands of rows of [k, y, x], and which rows they are."""
        masks, (height, width) = len(low_res), self._size_yx
        wide = np.empty((masks, self._rows, width), np.float32)
        for band in self._across:
            np.matmul(low_res[:, : self._rows, band.source], band.weights.T, out=wide[:, :, band.target])
        for rows in bands(height, masks * width, multiple=_BAND):
            part = np.empty((masks, rows.stop - rows.start, width), np.float32)
            for band in self._down[rows.start // _BAND : -(-rows.stop // _BAND)]:
                target = slice(band.target.start - rows.start, band.target.stop - rows.start)
                np.matmul(band.weights, wide[:, band.source], out=part[:, target])
            yield rows, part


def _cut_bands(weights: Float) -> Iterator[_Band]:
    """Cut a matrix whose rows have a few neighboring non-zero cells into bands without the zeros."""
    for start in range(0, len(weights), _BAND):
        rows = weights[start : start + _BAND]
        used = np.flatnonzero(rows.any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        target = slice(start, start + len(rows))
        yield _Band(target, source, np.ascontiguousarray(rows[:, source], np.float32))


def square_offset(size_yx: Size) -> Size:
    """Return the offset of an image in its padded square, whose side is the longer one (METHOD §4.1)."""
    side = max(size_yx)
    return (side - size_yx[0]) // 2, (side - size_yx[1]) // 2


def resize_image(
    image: ImageArray, size_yx: Size, method: Image.Resampling, *, square: bool = False
) -> ImageArray:
    """Resize as Pillow does, bit by bit, without the square that an image is padded to.

    Pillow resizes the rows of a square first, and rounds to 8 bits between: so they may be resized in bands.
    Of a tall image it resizes the columns first; an image that is not padded is left to Pillow as a whole.

    Args:
        image: [y, x, 3].
        size_yx: the wanted size.
        method: Pillow's filter.
        square: center the image on a black square first (METHOD §4.1).

    Returns:
        [y, x, 3].
    """
    (height, width), (down, across) = image.shape[:2], size_yx
    if not square:
        return np.asarray(Image.fromarray(image).resize((across, down), method))
    top, left = square_offset((height, width))
    side = max(height, width)
    narrow = np.zeros((side, across, 3), np.uint8)
    for band in bands(height, side):
        padded = np.zeros((band.stop - band.start, side, 3), np.uint8)
        padded[:, left : left + width] = image[band]
        resized = Image.fromarray(padded).resize((across, len(padded)), method)
        narrow[top + band.start : top + band.stop] = np.asarray(resized)
    return np.asarray(Image.fromarray(narrow).resize((across, down), method))


def upsample_levels(levels: NDArray[np.uint8], side: int, size_yx: Size) -> NDArray[np.uint8]:
    """Resize a map to a square with Pillow's LANCZOS, and cut an image's part out of it.

    Args:
        levels: [g, g].
        side: of the square, in px.
        size_yx: the image's size; its longer side is `side`.

    Returns:
        [y, x].
    """
    top, left = square_offset(size_yx)
    wide = Image.fromarray(levels).resize((side, len(levels)), Image.Resampling.LANCZOS)
    result = np.empty(size_yx, np.uint8)
    for band in bands(size_yx[1], side):
        part = wide.crop((left + band.start, 0, left + band.stop, len(levels)))
        column = np.asarray(part.resize((part.width, side), Image.Resampling.LANCZOS))
        result[:, band] = column[top : top + size_yx[0]]
    return result


def diffusion_input(image: ImageArray, size: int) -> Float:
    """Return the VAE's input: the padded square, resized with LANCZOS, scaled to -1..1.

    Args:
        image: [y, x, 3].
        size: side of the encoder's input in px.

    Returns:
        [1, 3, size, size].
    """
    resized = resize_image(image, (size, size), Image.Resampling.LANCZOS, square=True)
    scaled = resized.astype(np.float32) / 255.0 * 2.0 - 1.0  # [size, size, 3]
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))[None]


def sam_size(size_yx: Size, longest: int) -> Size:
    """Return the size of SAM's resized image: longest side `longest`, rounded half up, at least one pixel."""
    scale = longest / max(size_yx)
    return max(1, int(size_yx[0] * scale + 0.5)), max(1, int(size_yx[1] * scale + 0.5))


def sam_input(image: ImageArray, spec: SamSpec) -> tuple[Float, Size]:
    """Return SAM's input: longest side resized, normalized, zeros below and to the right.

    Args:
        image: [y, x, 3].
        spec: size and normalization.

    Returns:
        [1, 3, s, s] with s = spec.image_size, and the (y, x) size of the resized image in it.
    """
    height, width = resized_yx = sam_size((image.shape[0], image.shape[1]), spec.image_size)
    resized = resize_image(image, resized_yx, Image.Resampling.BILINEAR)
    mean, std = np.asarray(spec.pixel_mean, np.float32), np.asarray(spec.pixel_std, np.float32)
    square = np.zeros((1, 3, spec.image_size, spec.image_size), np.float32)
    square[0, :, :height, :width] = ((resized.astype(np.float32) - mean) / std).transpose(2, 0, 1)
    return square, resized_yx
