"""Measure masks: areas, boxes, stability, suppression of duplicates, run lengths of COCO and Label Studio.

Axes: n = masks, y/x = image rows/columns. Boxes are [x0, y0, x1, y1] with inclusive corners.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.results import Masks
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
