"""One polygon around a mask of any shape, as the labels of YOLO have it.

A label is one closed polygon. Parts and holes are joined to it by bridges that go there and back, each at
the nearest pixels, as ultralytics joins the polygons of a COCO annotation (`merge_multi_segment` of its
data/converter.py). Filled by `cv2.fillPoly`, as ultralytics does, the polygon is the mask again; a bridge
between two parts adds a line of one pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Bool
from refdiff.data.truth import require_eval

Points = NDArray[np.int64]
"""[n, 2]: x, y in px."""

_BLOCK = 1 << 20
"""Most distances that are computed at a time."""

_MARGIN = 0.25
"""Half the width in px that a line or a single pixel gets, so that its box has an area."""


def outline(mask: Bool) -> NDArray[np.float64]:
    """Return the polygon around a mask.

    Args:
        mask: [y, x], not empty.

    Returns:
        [n, 2]: x, y in px, n >= 3, at the centers of the mask's outermost pixels: the center of the first
        pixel is at 0.5, 0.5.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    with require_eval("outlines of masks"):
        import cv2
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [ring.reshape(-1, 2).astype(np.int64) for ring in found]
    return _with_area(_without_straight_points(join_rings(rings))) + 0.5


def join_rings(rings: list[Points]) -> Points:
    """Join closed polygons to one, the nearest to those already joined first; points return at bridges."""
    points, owners = np.concatenate(rings), np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    firsts = np.cumsum([0, *(len(ring) for ring in rings[:-1])])
    joined = np.arange(len(rings[0]))  # indices into `points`, in the order of the polygon
    distance, nearest = np.full(len(points), np.inf), np.zeros(len(points), np.int64)
    missing = owners != 0
    added = joined
    while missing.any():
        left = np.flatnonzero(missing)
        closest, which = _nearest(points[left], points[added])
        better = closest < distance[left]
        distance[left[better]], nearest[left[better]] = closest[better], added[which[better]]
        there = left[np.argmin(distance[left])]
        owner = owners[there]
        added = firsts[owner] + np.arange(len(rings[owner]))
        place = int(np.flatnonzero(joined == nearest[there])[0])
        around = [*np.roll(added, firsts[owner] - there), there]
        joined = np.concatenate((joined[: place + 1], around, joined[place:]))
        missing[added] = False
    return points[joined]


def _nearest(points: Points, others: Points) -> tuple[NDArray[np.float64], Points]:
    """Return for each point the squared distance to the nearest of the others, and its index."""
    distances, indices = np.empty(len(points)), np.empty(len(points), np.int64)
    rows = max(1, _BLOCK // len(others))
    for start in range(0, len(points), rows):
        part = slice(start, start + rows)
        squared = np.square(points[part, None].astype(np.float64) - others[None]).sum(axis=2)
        indices[part] = squared.argmin(axis=1)
        distances[part] = squared.min(axis=1)
    return distances, indices


def _without_straight_points(points: Points) -> Points:
    """Drop the points at which the polygon goes straight on."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    kept = (turns != 0) | ((before * after).sum(axis=1) <= 0)
    return np.asarray(points[kept])


def _with_area(points: Points) -> NDArray[np.float64]:
    """Return a polygon of three points or more whose box has an area, also around a line or a pixel."""
    low, high = points.min(axis=0), points.max(axis=0)
    if np.any(low == high):
        (left, top), (right, bottom) = low - _MARGIN, high + _MARGIN
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    whole = points if len(points) > 2 else np.concatenate((points, points[:1]))
    return whole.astype(np.float64)
