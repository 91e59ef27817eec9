"""Remove small holes and isolated regions from masks (METHOD §10.1).

A mask is a list of runs: stretches of True in one row. Runs that touch make a region, so the work grows with
the outline and not with the area.

Axes: r = runs, y/x = image rows/columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.results import Masks, stack_masks
from refdiff.contracts.session import Bool
from refdiff.runtime.masks import boxes, suppress_duplicates

Integers = NDArray[np.intp]


class _Runs(NamedTuple):
    """The stretches of True of a mask, in reading order; each array [r]."""

    rows: Integers
    starts: Integers
    ends: Integers
    """One past the last column."""


def drop_small_regions(found: Masks, least_px: float, *, max_iou: float) -> tuple[Masks, NDArray[np.int64]]:
    """Remove small regions; of two masks that become alike the unchanged one stays (METHOD §10.1).

    As in SAM, the masks without small regions come first, each kind in its former order.

    Args:
        found: [n, y, x].
        least_px: pixels of the smallest region that stays.
        max_iou: masks whose boxes overlap by more are alike.

    Returns:
        The masks that stay, and their indices in `found`.
    """
    unchanged: list[bool] = []

    def clean() -> Iterator[Bool]:
        for mask in found:
            cleaned, changed = without_small_regions(mask, least_px)
            unchanged.append(not changed)
            yield cleaned

    masks = stack_masks(clean(), len(found), (found.shape[1], found.shape[2]))
    best = suppress_duplicates(boxes(masks), np.array(unchanged, dtype=np.float32), max_iou=max_iou)
    return masks[best], best


def without_small_regions(mask: Bool, least_px: float) -> tuple[Bool, bool]:
    """Fill holes, then drop isolated regions, that have fewer pixels than `least_px`.

    As segment_anything's `remove_small_regions`, first holes, then regions: diagonal neighbours touch,
    background that the image's edge cuts off counts as a hole, and where every region is too small the
    largest stays.

    Args:
        mask: [y, x].
        least_px: pixels of the smallest region that stays.

    Returns:
        [y, x], the mask itself where nothing was too small; and whether anything was, as SAM reports it: also
        if only the largest region was, which stays.
    """
    background, has_small_hole = _remove_small(~mask, least_px, keep_largest=False)
    cleaned, has_small_region = _remove_small(~background, least_px, keep_largest=True)
    return cleaned, has_small_hole or has_small_region


def _remove_small(mask: Bool, least_px: float, *, keep_largest: bool) -> tuple[Bool, bool]:
    """Remove the regions of fewer than `least_px` pixels, and return whether there were any."""
    runs = _find_runs(mask)
    if not len(runs.rows):
        return mask, False
    labels = _label_runs(runs, mask.shape[1])
    sizes = np.bincount(labels, weights=runs.ends - runs.starts)  # a label no run has keeps size 0
    small = (sizes < least_px) & (sizes > 0)
    if not small.any():
        return mask, False
    if keep_largest and small.sum() == np.count_nonzero(sizes):
        # OpenCV, which SAM labels with, scans blocks of 2x2: of equally large regions its first one stays.
        blocks = (runs.rows // 2) * mask.shape[1] + runs.starts // 2  # [r]
        largest = sizes[labels] == sizes.max()
        small[labels[largest][blocks[largest].argmin()]] = False
    removed = small[labels]  # [r]
    remaining = mask.copy()
    for row, start, end in zip(*(part[removed].tolist() for part in runs), strict=True):
        remaining[row, start:end] = False
    return remaining, True


def _find_runs(mask: Bool) -> _Runs:
    height, width = mask.shape
    framed = np.zeros((height, width + 2), dtype=np.bool_)
    framed[:, 1:-1] = mask
    rows, columns = np.nonzero(framed[:, 1:] != framed[:, :-1])  # where True begins and ends, alternately
    return _Runs(rows[::2], columns[::2], columns[1::2])


def _label_runs(runs: _Runs, width: int) -> Integers:
    """Return the index of the first run of each run's region: [r]."""
    above, below = _find_touching(runs, width)
    labels = np.arange(len(runs.rows))
    while True:
        ours, theirs = labels[above], labels[below]
        low, high = np.minimum(ours, theirs), np.maximum(ours, theirs)
        if np.array_equal(low, high):
            return labels
        np.minimum.at(labels, high, low)
        while not np.array_equal(shorter := labels[labels], labels):
            labels = shorter


def _find_touching(runs: _Runs, width: int) -> tuple[Integers, Integers]:
    """Return the indices of all pairs of runs in neighboring rows that touch, corners included."""
    stride = width + 2  # no run of one row reaches into the next
    starts, ends = runs.rows * stride + runs.starts, runs.rows * stride + runs.ends
    first = np.searchsorted(ends, starts - stride, side="left")  # of the row above, by where a run ends
    last = np.searchsorted(starts, ends - stride, side="right")  # and by where it begins
    counts = np.maximum(last - first, 0)
    below = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(below)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first[below] + within, below
