"""Mask logits on the picture's pixels: SAM's two bilinear resizes as one, which is exact.

SAM blows its low-resolution logits up to its square, cuts the padding away, and resizes what is left to the
picture. Each is linear along rows and along columns, so together they are two matrices, worked out once for a
picture's size. A row of them mixes at most four neighbours: they are multiplied in narrow bands.

Axes: k = masks, l = side of the low-resolution logits, S = SAM's square, y/x = picture rows/columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refdiff.contracts.session import Float
from refdiff.runtime.geometry import Size
from refdiff.runtime.interpolation import linear

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
