"""Resizing along one axis: every target cell is a sum over its few source neighbours.

A matrix product would do the same with all the zeros, and wake the threads of numpy's linear algebra library,
which then spin for milliseconds beside the threads of the graphs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Float

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
