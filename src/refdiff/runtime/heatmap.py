"""Tapped logits to a heat map over the picture (METHOD §4.5, §4.6).

Axes: l = tapped layers, q = query cells = g*g, rows first, g = grid side, t = tokens, m = maps = layers x
passes, y/x = picture rows/columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from refdiff.contracts.session import Array, Float
from refdiff.runtime.resize import crop_square, upsample_bilinear

EPS = 1e-8
"""Added to the denominator of every min-max: a flat map becomes zeros (METHOD §9)."""


def guided_branches(branches: Float, guidance: float) -> Float:
    """U + guidance (C - U), of logits or of predictions.

    Args:
        branches: [2, ...], the unconditional one first; or [1, ...], the conditional one alone, which is
            all that counts at guidance 1.
        guidance: 9 in the release.

    Returns:
        [...].
    """
    if len(branches) == 1:
        return np.asarray(branches[0])
    unconditional, conditional = branches
    guided: Float = unconditional + np.float32(guidance) * (conditional - unconditional)
    return guided


def normalised_maps(logits: Float, token_indices: Sequence[int], grid_side: int, eps: float = EPS) -> Float:
    """The chosen tokens' columns as maps, each stretched to 0..1.

    Args:
        logits: [l, q, t].
        token_indices: the columns that are averaged.
        grid_side: g.
        eps: added to each map's range.

    Returns:
        [l, g, g], rows = y. A flat map is zero.
    """
    columns = logits[:, :, list(token_indices)].mean(axis=2, dtype=np.float32)  # [l, q]
    maps = columns.reshape(-1, grid_side, grid_side)  # [l, g, g]
    low = maps.min(axis=(1, 2), keepdims=True)
    high = maps.max(axis=(1, 2), keepdims=True)
    stretched: Float = (maps - low) / (high - low + np.float32(eps))
    return stretched


def heat_map(maps: Float, size_yx: tuple[int, int], *, uint8_lanczos: bool) -> Float:
    """The mean map on the picture's pixels.

    Args:
        maps: [m, g, g], 0..1, over the padded square.
        size_yx: the picture's size.
        uint8_lanczos: resize through 8 bits with LANCZOS, as released; False: float bilinear.

    Returns:
        [y, x], 0..1.
    """
    mean, side = maps.mean(axis=0, dtype=np.float32), max(size_yx)  # [g, g]
    if uint8_lanczos:
        levels = Image.fromarray((mean * np.float32(255.0)).astype(np.uint8))  # truncates, as released
        square: Array = np.asarray(levels.resize((side, side), Image.Resampling.LANCZOS))
        square = square.astype(np.float32) / np.float32(255.0)  # [S, S]
    else:
        square = upsample_bilinear(mean, (side, side))
    heat = crop_square(square, size_yx)  # [y, x]
    low, high = heat.min(), heat.max()
    return np.ascontiguousarray((heat - low) / (high - low + np.float32(EPS)), np.float32)
