"""Measure masks, drop duplicates and small regions (METHOD §10.1), encode run lengths of COCO, Label Studio.

Regions are found in runs, stretches of True in one row. Runs that touch make a region, so the work grows with
the outline and not with the area.

Axes: n = masks, r = runs, y/x = image rows/columns. Boxes are [x0, y0, x1, y1] with inclusive corners.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.results import Masks, stack_masks
from refdiff.contracts.session import Bool, Float

Integers = NDArray[np.int64]


def areas(masks: Masks) -> Integers:
    """Count the pixels of each mask: [n, y, x] -> [n]."""
    # Mask by mask: numpy counts a whole array of truth values several times faster than along axes.
    return np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)


def boxes(masks: Masks) -> Integers:
    """Return the inclusive box of each mask: [n, y, x] -> [n, 4]; an empty mask gets [0, 0, 0, 0]."""
    count, height, width = masks.shape
    rows, columns = np.empty((count, height), np.bool_), np.empty((count, width), np.bool_)
    for i, mask in enumerate(masks):
        mask.any(axis=1, out=rows[i])
        mask.any(axis=0, out=columns[i])
    return boxes_around(rows, columns)


def boxes_around(rows: Bool, columns: Bool) -> Integers:
    """Return the boxes of `boxes`, of masks that have pixels in some rows [n, y] and columns [n, x]."""
    height, width = rows.shape[1], columns.shape[1]
    corners = (
        columns.argmax(axis=1),
        rows.argmax(axis=1),
        width - 1 - columns[:, ::-1].argmax(axis=1),
        height - 1 - rows[:, ::-1].argmax(axis=1),
    )
    return np.where(np.any(rows, axis=1, keepdims=True), np.stack(corners, axis=1), 0).astype(np.int64)


def cut_areas(logits: Float, *, threshold: float, offset: float) -> Integers:
    """Return the areas of masks cut `offset` above the threshold, and cut `offset` below it.

    Args:
        logits: [n, y, x], whole masks or some of their rows.
        threshold: the cut of the mask itself.
        offset: distance of the two cuts from it.

    Returns:
        [2, n].
    """
    return np.stack([areas(logits > threshold + offset), areas(logits > threshold - offset)])


def stability(cuts: Integers) -> Float:
    """Return the IoU of the two cuts of each mask, the inner one lies in the outer: [2, n] -> [n].

    0..1; 0 for a mask that is empty at both cuts (SAM gets NaN there and drops it too).
    """
    inner, outer = cuts
    return np.asarray(inner / np.maximum(outer, 1), dtype=np.float32)


def suppress_duplicates(boxes_xyxy: Integers, scores: Float, *, max_iou: float) -> Integers:
    """Apply greedy non-maximum suppression, as `torchvision.ops.nms`.

    The inclusive corners are taken as continuous coordinates, so a box is one pixel narrower than its
    mask, and a one-pixel line has no area: it neither suppresses nor is suppressed. SAM does the same.

    Args:
        boxes_xyxy: [n, 4].
        scores: [n]; of equal scores the earlier one goes first.
        max_iou: a box that overlaps a better one by more than this is dropped.

    Returns:
        Indices of the survivors, best score first.
    """
    order = np.argsort(-scores, kind="stable")
    x0, y0, x1, y1 = boxes_xyxy[order].astype(np.float32).T  # each [n]
    sizes = (x1 - x0) * (y1 - y0)
    alive = np.ones(len(order), dtype=np.bool_)
    for i in range(len(order)):
        if not alive[i]:
            continue
        rest = slice(i + 1, None)
        widths = np.minimum(x1[i], x1[rest]) - np.maximum(x0[i], x0[rest])
        heights = np.minimum(y1[i], y1[rest]) - np.maximum(y0[i], y0[rest])
        overlaps = np.maximum(widths, 0) * np.maximum(heights, 0)
        unions = sizes[i] + sizes[rest] - overlaps
        ious = np.divide(overlaps, unions, out=np.zeros_like(unions), where=unions > 0)
        alive[rest] &= ious <= max_iou
    return order[alive].astype(np.int64)


def to_coco_rle(mask: Bool) -> dict[str, Any]:
    """Return uncompressed COCO run lengths: `{"size": [h, w], "counts": [...]}`.

    Runs go down the columns; the first one counts False and may be 0.
    """
    flat = np.asarray(mask, dtype=np.bool_).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    return {"size": [int(side) for side in mask.shape], "counts": runs}


def compress_coco_rle(rle: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same run lengths with `counts` as the text that pycocotools reads and writes."""
    counts = np.asarray(rle["counts"], np.int64)
    rest = np.concatenate([counts[:3], counts[3:] - counts[1:-2]])  # from the fourth on, changes by two
    # Each signed number becomes five-bit groups, lowest first, each one printable character.
    columns, pending = [], np.ones(len(rest), dtype=np.bool_)
    while pending.any():
        group, rest = rest & 0x1F, rest >> 5
        more = rest != np.where(group & 0x10, -1, 0)
        columns.append(np.where(pending, 48 + (group | np.where(more, 0x20, 0)), 0))
        pending &= more
    codes = np.stack(columns, axis=1)
    return {"size": list(rle["size"]), "counts": codes[codes > 0].astype(np.uint8).tobytes().decode("ascii")}


_BRUSH_BITS = (3, 4, 8, 16)
"""Bits of the lengths that a run of Label Studio can have."""


def to_brush_rle(mask: Bool) -> bytes:
    """Return the run lengths of Label Studio's brush: those of an RGBA image, 255 inside and 0 outside.

    A stream of bits: 32 for the number of values, 5 for the bits of a value minus 1, 4 for each of the four
    sizes of a length minus 1; then for each run a 1, 2 bits for the size, the length minus 1, and the value.
    Source: thi.ng's rle-pack, and `label_studio_converter.brush`, which writes the same bytes.

    Args:
        mask: [y, x]; runs go along the rows.
    """
    flat = np.asarray(mask, dtype=np.bool_).ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    runs = 4 * np.diff(np.concatenate((starts, [flat.size])))
    longest = 1 << _BRUSH_BITS[-1]
    pieces = (runs - 1) // longest + 1
    lengths = np.full(int(pieces.sum()), longest)
    lengths[np.cumsum(pieces) - 1] = runs - longest * (pieces - 1)
    sizes = np.searchsorted([1 << bits for bits in _BRUSH_BITS[:-1]], runs)
    size, inside = np.repeat(sizes, pieces), np.repeat(flat[starts], pieces)
    length_bits = np.asarray(_BRUSH_BITS)[size]
    codes = ((0b100 | size) << length_bits | (lengths - 1)) << 8 | np.where(inside, 255, 0)
    bits = [_to_bits(np.array([4 * flat.size]), np.array([32])), _to_bits(np.array([7]), np.array([5]))]
    bits += [_to_bits(np.asarray(_BRUSH_BITS) - 1, np.full(4, 4)), _to_bits(codes, 3 + length_bits + 8)]
    stream = np.concatenate(bits)
    return np.packbits(np.concatenate((stream, np.zeros(8 - stream.size % 8, np.uint8)))).tobytes()


def _to_bits(codes: Integers, widths: Integers) -> NDArray[np.uint8]:
    """Return numbers as bits, highest first, each with a width of its own: [n], [n] -> [sum of widths]."""
    shifts = np.repeat(np.cumsum(widths), widths) - 1 - np.arange(widths.sum())
    return ((np.repeat(codes, widths) >> shifts) & 1).astype(np.uint8)


class _Runs(NamedTuple):
    """The stretches of True of a mask, in reading order; each array [r]."""

    rows: NDArray[np.intp]
    starts: NDArray[np.intp]
    ends: NDArray[np.intp]
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


def _label_runs(runs: _Runs, width: int) -> NDArray[np.intp]:
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


def _find_touching(runs: _Runs, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of all pairs of runs in neighboring rows that touch, corners included."""
    stride = width + 2  # no run of one row reaches into the next
    starts, ends = runs.rows * stride + runs.starts, runs.rows * stride + runs.ends
    first = np.searchsorted(ends, starts - stride, side="left")  # of the row above, by where a run ends
    last = np.searchsorted(starts, ends - stride, side="right")  # and by where it begins
    counts = np.maximum(last - first, 0)
    below = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(below)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first[below] + within, below
