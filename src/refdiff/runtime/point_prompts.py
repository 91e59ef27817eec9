"""Where to prompt SAM for one phrase: at the peaks of its map (METHOD §10.2).

In: the map c [y, x]. Out: points [m, 2] of (x, y), shares of the picture as in `proposals.grid_points`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import POINTS_PER_BATCH
from refdiff.contracts.session import Bool, Float
from refdiff.runtime.proposals import grid_points

Points = NDArray[np.float64]

_CELLS = 64  # the map is looked at in as many cells along its longer side: four to a cell of SD's 16x16
_APART = 2.0  # cells: what is nearer to a higher peak is part of it


def map_prompts(heat: Float, *, peaks: int, points_per_side: int) -> Points:
    """The map's highest peaks, then the even grid's points where the map is above its mean, hottest first.

    Args:
        heat: [y, x], 0..1.
        peaks: how many of them, at most.
        points_per_side: of the grid.

    Returns:
        [m, 2], at most one decoder call's, at least one.
    """
    grid = grid_points(points_per_side)
    warmth = _sampled(heat, grid)
    hottest = np.argsort(-warmth, kind="stable")
    warm = grid[hottest[warmth[hottest] > heat.mean()]]
    return np.concatenate([peak_points(heat, peaks), warm])[:POINTS_PER_BATCH]


def peak_points(heat: Float, most: int) -> Points:
    """The highest local maxima of the map, no two close together, highest first: [m, 2], m <= most."""
    cells = _cells(heat.shape[0], heat.shape[1])  # [rows, columns, 2]
    seen = _sampled(heat, cells)  # [rows, columns]
    tops = np.argwhere(_is_top(seen))
    tops = tops[np.argsort(-seen[tuple(tops.T)], kind="stable")]
    chosen: list[NDArray[np.intp]] = []
    for top in tops:
        if all(np.hypot(*(top - other)) > _APART for other in chosen):
            chosen.append(top)
        if len(chosen) == most:
            break
    return np.asarray(cells[tuple(np.array(chosen).T)])


def _cells(height: int, width: int) -> Points:
    """The middles of square cells over the picture, no cell smaller than a pixel: [rows, columns, 2]."""
    longer = max(height, width)
    cell = max(1.0, longer / _CELLS)
    rows, columns = (max(1, round(side / cell)) for side in (height, width))
    x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    return np.stack([x, y], axis=-1)


def _sampled(heat: Float, points: Points) -> Float:
    """The map's values at points [..., 2]: [...]."""
    height, width = heat.shape
    rows, columns = points[..., 1] * height, points[..., 0] * width
    return np.asarray(heat[rows.astype(np.intp), columns.astype(np.intp)])


def _is_top(seen: Float) -> Bool:
    """Which cells no neighbour exceeds: [rows, columns]."""
    framed = np.pad(seen, 1, constant_values=-np.inf)
    rows, columns = seen.shape
    around = [
        framed[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if (dy, dx) != (0, 0)
    ]
    return np.asarray(seen >= np.max(around, axis=0))
