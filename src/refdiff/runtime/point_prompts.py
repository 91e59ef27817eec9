"""Point prompts of SAM: on an even grid, or for one phrase at the peaks of its heatmap (METHOD §2, §10.2).

Points are [m, 2] of (x, y), as shares of the image. Axes: y/x = image rows/columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import POINTS_PER_BATCH
from refdiff.contracts.session import Bool, Float

Points = NDArray[np.float64]

_CELLS = 64  # cells along the heatmap's longer side: four to a cell of SD's 16x16
_COLD = 0.3  # largest heat of a negative point, as in T2S (METHOD §10.13)
_APART = 2.0  # cells; a maximum nearer than this to a higher peak belongs to that peak


def grid_points(points_per_side: int) -> Points:
    """Return SAM's even grid [m, 2] of (x, y) in 0..1, row by row (METHOD §2)."""
    offset = 1 / (2 * points_per_side)
    side = np.linspace(offset, 1 - offset, points_per_side)
    x, y = np.meshgrid(side, side)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def map_prompts(heatmap: Float, *, peaks: int, points_per_side: int) -> Points:
    """Return the highest peaks, then the grid's points above the mean, highest first (METHOD §10.2).

    Args:
        heatmap: [y, x], 0..1.
        peaks: most peaks.
        points_per_side: of the grid.

    Returns:
        [m, 2], at least one, and no more than one decoder call takes.
    """
    grid = grid_points(points_per_side)
    values = _sample(heatmap, grid)
    highest = np.argsort(-values, kind="stable")
    above = grid[highest[values[highest] > heatmap.mean()]]
    return np.concatenate([peak_points(heatmap, peaks), above])[:POINTS_PER_BATCH]


def cold_points(heatmap: Float, most: int, *, points_per_side: int) -> Points:
    """Return the grid's points where the map is at most 0.3 and below its mean, apart from each other.

    Args:
        heatmap: [y, x], 0..1.
        most: most points.
        points_per_side: of the grid.

    Returns:
        [k, 2], k <= most: the coldest, then each time the one farthest from those chosen (METHOD §10.13).
    """
    grid = grid_points(points_per_side)
    values = _sample(heatmap, grid)
    cold = (values <= _COLD) & (values < heatmap.mean())
    places, chosen = grid[cold], [int(np.argmin(values[cold]))] if most and cold.any() else []
    while chosen and len(chosen) < min(most, len(places)):
        apart = np.linalg.norm(places[:, None] - places[chosen], axis=2).min(axis=1)
        chosen.append(int(np.argmax(apart)))
    return np.asarray(places[chosen])


def peak_points(heatmap: Float, most: int) -> Points:
    """Return the highest local maxima, no two close together, highest first: [m, 2], m <= most."""
    cells = _cell_centers(heatmap.shape[0], heatmap.shape[1])  # [rows, columns, 2]
    values = _sample(heatmap, cells)  # [rows, columns]
    maxima = np.argwhere(_is_maximum(values))
    maxima = maxima[np.argsort(-values[tuple(maxima.T)], kind="stable")]
    chosen: list[NDArray[np.intp]] = []
    for cell in maxima:
        if all(np.hypot(*(cell - other)) > _APART for other in chosen):
            chosen.append(cell)
        if len(chosen) == most:
            break
    return np.asarray(cells[tuple(np.array(chosen).T)])


def _cell_centers(height: int, width: int) -> Points:
    """Return the centers of square cells over the image, no cell smaller than a pixel: [rows, columns, 2]."""
    longer = max(height, width)
    cell = max(1.0, longer / _CELLS)
    rows, columns = (max(1, round(side / cell)) for side in (height, width))
    x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    return np.stack([x, y], axis=-1)


def _sample(heatmap: Float, points: Points) -> Float:
    """Return the heatmap's values at points [..., 2]: [...]."""
    height, width = heatmap.shape
    rows, columns = points[..., 1] * height, points[..., 0] * width
    return np.asarray(heatmap[rows.astype(np.intp), columns.astype(np.intp)])


def _is_maximum(values: Float) -> Bool:
    """Return whether no neighbor exceeds a cell: [rows, columns]."""
    framed = np.pad(values, 1, constant_values=-np.inf)
    rows, columns = values.shape
    around = [
        framed[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if (dy, dx) != (0, 0)
    ]
    return np.asarray(values >= np.max(around, axis=0))
