"""Follow one mask from frame to frame by points inside of it: the level `points`.

In: a mask in one small frame, then newer small frames. Out: the mask in each of them, and the evidence that
it is right. Points are followed by Lucas-Kanade's method forward and backward; what survives is fitted with a
similarity. The original mask is warped once, by the map from its own frame to the newest, so errors of edges
do not add up. What was under the mask is compared with what is there now: pixels that differ are hidden
by something else, and new points are taken from the others alone. Without that check, points would move over
to an object that passes in front.

Coordinates are (x, y) px of the small frame. Axes: k = points, y/x = rows/columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.camera.small_frame import FOLLOWING, SmallFrame, differing_pixels
from refdiff.contracts.optional import load_cv2
from refdiff.contracts.session import Bool

Points = NDArray[np.float32]
Matrix = NDArray[np.float64]
"""[3, 3]: a similarity of places (x, y, 1)."""

MOST_POINTS = 80
LEAST_POINTS = 5
"""Fewer that agree are no evidence: two fit any similarity."""
_FEW_POINTS = 40
_APART_PX = 5
_CONTOUR_PX = 2
"""Points may lie this far outside of the mask: the corners of an even object are on its contour."""
_INNER_PX = 3
"""Points this far inside are taken first."""
_FEW_INSIDE = 24
"""Fewer points than this inside: those on the contour are taken, too."""
_WINDOW_PX = 17
_LEVELS = 3
_MARGIN_PX = 48
_BACK_PX = 1.0
"""A point that does not return to where it came from, by more than this, is dropped."""
_FIT_PX = 1.0
_DRIFT_PX = 4.0
"""A point that lies this far from where the mask's own motion has it is dropped."""
_STEP_SCALE = 0.75, 1.35
"""Believable change of size in one step."""
_LEAST_HIDDEN_PX = 17
"""Pixels that differ are taken out of the mask where a square of this side differs; less may be an edge."""


class Window(NamedTuple):
    """A part of a small frame."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def cut(self) -> tuple[slice, slice]:
        """The window as an index."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.y1 <= self.y0 or self.x1 <= self.x0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What supports the mask of one step."""

    inliers: float
    """Share of the points of the step before that were found again, and moved together, 0..1."""
    points: int
    """Their number."""
    forward_backward_px: float
    """Median distance from where a point came from to where it returns."""
    supported: float
    """Share of the mask in the picture that looks as in the mask's own frame, 0..1."""
    inside: float
    """Share of the mask that is in the picture, 0..1."""
    area_ratio: float
    """Area of the whole mask relative to that in its own frame."""


class MaskMotion:
    """A mask on its way through frames, followed by points.

    Args:
        small: the frame that the mask belongs to.
        mask: [y, x] of the full frame, with at least one True.
    """

    def __init__(self, small: SmallFrame, mask: Bool) -> None:
        cv2 = load_cv2(FOLLOWING)
        self.own, self.newest = small, small
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        self._full_box = Window(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        self._full = mask[self._full_box.cut].astype(np.uint8) * np.uint8(255)
        shown = mask.astype(np.uint8) * np.uint8(255)
        shown = cv2.resize(shown, small.grey.shape[::-1], interpolation=cv2.INTER_AREA)
        self._box = _padded(_box_of(shown > 0), 2, small.grey.shape)
        self._mask = np.ascontiguousarray(shown[self._box.cut])
        self._grey = small.grey[self._box.cut].copy()
        self._map: Matrix = np.eye(3)
        self._window, self._visible = self._box, self._mask > _threshold(self._mask)
        self._hidden: Bool | None = None
        self._own_places, self._places = self._seed(np.zeros((0, 2), np.float32))
        self.evidence = Evidence(
            inliers=1.0,
            points=len(self._places),
            forward_backward_px=0.0,
            supported=1.0,
            inside=1.0,
            area_ratio=1.0,
        )

    @property
    def to_newest(self) -> Matrix:
        """The map from places in the mask's own small frame to the newest one that it was followed to."""
        return self._map.copy()

    def step(self, small: SmallFrame) -> bool:
        """Follow the mask to a newer frame.

        Returns:
            False if it could not be followed. The mask stays at the frame it was followed to last, and the
            next call tries again from there; `evidence` is about the attempt.
        """
        if small.grey.shape != self.newest.grey.shape or small.size_yx != self.newest.size_yx:
            return self._fail(0.0, 0, 0.0)
        before, now, own, back_px = self._follow(small)
        total = max(1, len(self._places))
        fit = _fit(before, now, _FIT_PX)
        if fit is None:
            return self._fail(len(now) / total, 0, _median(back_px))
        moved, agree = fit
        scale = float(np.sqrt(abs(np.linalg.det(moved[:2, :2]))))
        count = int(agree.sum())
        if count < LEAST_POINTS or not _STEP_SCALE[0] < scale < _STEP_SCALE[1]:
            return self._fail(count / total, count, _median(back_px))
        self._map = self._overall(own[agree], now[agree], moved @ self._map)
        near = np.linalg.norm(_apply(self._map, own[agree]) - now[agree], axis=1) < _DRIFT_PX
        self._own_places, self._places = own[agree][near], now[agree][near]
        self.newest = small
        supported, inside = self._look(small)
        if len(self._places) < _FEW_POINTS:
            self._own_places, self._places = self._seed(self._places)
        self.evidence = Evidence(
            inliers=count / total,
            points=count,
            forward_backward_px=_median(back_px[agree]),
            supported=supported,
            inside=inside,
            area_ratio=float(abs(np.linalg.det(self._map[:2, :2]))),
        )
        return True

    def visible(self) -> Bool:
        """Return the visible part of the mask in the newest frame, [y, x] of the small frame."""
        shown = np.zeros(self.newest.grey.shape, np.bool_)
        shown[self._window.cut] = self._visible
        return shown

    def full_mask(self) -> Bool:
        """Return the visible part of the mask in the newest frame, [y, x] of the full frame."""
        cv2, scale = load_cv2(FOLLOWING), self.newest.scale
        (height, width), box = self.newest.size_yx, self._full_box
        to_full = np.array([[scale, 0, scale / 2 - 0.5], [0, scale, scale / 2 - 0.5], [0, 0, 1.0]])
        from_box = np.array([[1.0, 0, box.x0], [0, 1, box.y0], [0, 0, 1]])
        moved = to_full @ self._map @ np.linalg.inv(to_full) @ from_box
        shown = cv2.warpAffine(self._full, moved[:2], (width, height), flags=cv2.INTER_LINEAR) > 127
        if self._hidden is not None:
            hidden = np.zeros(self.newest.grey.shape, np.uint8)
            hidden[self._window.cut] = self._hidden
            shown &= cv2.resize(hidden, (width, height), interpolation=cv2.INTER_NEAREST) == 0
        return np.asarray(shown)

    def _fail(self, inliers: float, points: int, back_px: float) -> bool:
        last = self.evidence
        self.evidence = Evidence(
            inliers=inliers,
            points=points,
            forward_backward_px=back_px,
            supported=0.0,
            inside=last.inside,
            area_ratio=last.area_ratio,
        )
        return False

    def _follow(self, small: SmallFrame) -> tuple[Points, Points, Points, NDArray[np.float32]]:
        """Return what survives: places before, now and in the own frame [k, 2], errors of the way back."""
        cv2, places = load_cv2(FOLLOWING), self._places
        if len(places) == 0:
            return places, places, self._own_places, np.zeros(0, np.float32)
        low, high = places.min(axis=0), places.max(axis=0)
        part = Window(int(low[1]), int(low[0]), int(high[1]) + 1, int(high[0]) + 1)
        part = _padded(part, _MARGIN_PX, small.grey.shape)
        earlier, later = self.newest.grey[part.cut], small.grey[part.cut]
        corner = np.array([part.x0, part.y0], np.float32)
        start = (places - corner)[:, None]
        options: dict[str, Any] = {"winSize": (_WINDOW_PX, _WINDOW_PX), "maxLevel": _LEVELS}
        found, good, _ = cv2.calcOpticalFlowPyrLK(earlier, later, start, None, **options)
        back, good_back, _ = cv2.calcOpticalFlowPyrLK(later, earlier, found, None, **options)
        error = np.linalg.norm(back - start, axis=2)[:, 0]
        now = found[:, 0] + corner
        limit = np.array(small.grey.shape[::-1], np.float32)
        survives = (good[:, 0] == 1) & (good_back[:, 0] == 1) & (error < _BACK_PX)
        survives &= ((now >= 0) & (now < limit)).all(axis=1)
        return places[survives], now[survives], self._own_places[survives], error[survives]

    def _overall(self, own: Points, now: Points, composed: Matrix) -> Matrix:
        """Return the map from the own frame to now.

        It is fitted directly where the points allow it, as that drifts less than a product of many steps.
        """
        fit = _fit(own, now, _DRIFT_PX - 1.0)
        if fit is None or fit[1].sum() < max(LEAST_POINTS, 0.7 * len(own)):
            return composed
        corners = np.array([(x, y) for x in self._box[1::2] for y in self._box[::2]])
        gap = np.linalg.norm(_apply(fit[0], corners) - _apply(composed, corners), axis=1).max()
        return fit[0] if gap < 2 * _DRIFT_PX else composed

    def _look(self, small: SmallFrame) -> tuple[float, float]:
        """Compare what is under the mask now with what was; set what is visible.

        Returns:
            The supported share, and the share in the picture.
        """
        cv2, box = load_cv2(FOLLOWING), self._box
        from_box = self._map @ np.array([[1.0, 0, box.x0], [0, 1, box.y0], [0, 0, 1]])
        height, width = self._mask.shape
        corners = _apply(from_box, np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64))
        low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int) + 1
        whole = np.count_nonzero(self._mask > _threshold(self._mask)) * abs(np.linalg.det(self._map[:2, :2]))
        self._window = window = _padded(Window(low[1], low[0], high[1], high[0]), 0, small.grey.shape)
        if window.is_empty:
            self._visible, self._hidden = np.zeros((0, 0), np.bool_), None
            self._window = Window(0, 0, 0, 0)
            return 0.0, 0.0
        local = from_box[:2] - np.array([[0, 0, window.x0], [0, 0, window.y0]])
        size_xy = window.x1 - window.x0, window.y1 - window.y0
        mask = cv2.warpAffine(self._mask, local, size_xy, flags=cv2.INTER_LINEAR)
        mask = mask > _threshold(self._mask)
        then = cv2.warpAffine(
            self._grey, local, size_xy, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        count = int(np.count_nonzero(mask))
        if count == 0:
            self._visible, self._hidden = mask, None
            return 0.0, 0.0
        differs = differing_pixels(then, small.grey[window.cut], mask)
        share = np.count_nonzero(differs & mask) / count
        whole_px = np.ones((_LEAST_HIDDEN_PX,) * 2, np.uint8)
        hidden = cv2.morphologyEx(differs.astype(np.uint8), cv2.MORPH_OPEN, whole_px) > 0
        self._hidden = hidden if hidden.any() else None
        self._visible = mask & ~hidden
        return 1.0 - share, min(1.0, count / max(1.0, float(whole)))

    def _seed(self, places: Points) -> tuple[Points, Points]:
        """Add points on the visible part to `places`; return all, in the own frame and in the newest.

        Points inside are preferred: near the contour, a window also shows what is behind.
        """
        cv2 = load_cv2(FOLLOWING)
        window = _padded(self._window, _CONTOUR_PX + 1, self.newest.grey.shape)
        visible = np.zeros((window.y1 - window.y0, window.x1 - window.x0), np.uint8)
        top, left = self._window.y0 - window.y0, self._window.x0 - window.x0
        part = visible[top : top + self._visible.shape[0], left : left + self._visible.shape[1]]
        part[...] = self._visible
        inner = cv2.erode(visible, np.ones((2 * _INNER_PX + 1,) * 2, np.uint8), borderValue=0)
        outer = cv2.dilate(visible, np.ones((2 * _CONTOUR_PX + 1,) * 2, np.uint8))
        if self._hidden is not None:
            outer[top : top + part.shape[0], left : left + part.shape[1]][self._hidden] = 0
        for allowed, enough in ((inner, MOST_POINTS), (outer, _FEW_INSIDE)):
            if len(places) < enough:
                places = self._add_corners(places, allowed, window, enough)
        return _apply(np.linalg.inv(self._map), places).astype(np.float32), places

    def _add_corners(self, places: Points, allowed: NDArray[np.uint8], window: Window, most: int) -> Points:
        cv2 = load_cv2(FOLLOWING)
        for x, y in np.round(places).astype(int).tolist():
            cv2.circle(allowed, (x - window.x0, y - window.y0), _APART_PX, 0, -1)
        if not allowed.any():
            return places
        wanted, part = most - len(places), self.newest.grey[window.cut]
        corners = cv2.goodFeaturesToTrack(part, wanted, 0.01, _APART_PX, mask=allowed)
        if corners is None:
            return places
        added = corners.reshape(-1, 2) + np.array([window.x0, window.y0], np.float32)
        return np.concatenate([places, added]).astype(np.float32)


def _fit(before: Points, now: Points, limit_px: float) -> tuple[Matrix, Bool] | None:
    """Fit a similarity; return it and which points agree [k], or None if there is none."""
    if len(before) < LEAST_POINTS:
        return None
    found, agree = load_cv2(FOLLOWING).estimateAffinePartial2D(before, now, ransacReprojThreshold=limit_px)
    if found is None or not np.isfinite(found).all():
        return None
    return np.vstack([found, [0.0, 0.0, 1.0]]), agree[:, 0] == 1


def _apply(matrix: NDArray[Any], places: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(places @ matrix[:2, :2].T + matrix[:2, 2])


def _median(values: NDArray[np.float32]) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _threshold(mask: NDArray[np.uint8]) -> int:
    """Return half of 255, or less for a mask so thin that no small pixel is half covered."""
    return min(127, int(mask.max()) // 2)


def _box_of(mask: Bool) -> Window:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return Window(0, 0, 1, 1)
    return Window(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _padded(window: Window, by: int, size_yx: tuple[int, ...]) -> Window:
    """Return a window enlarged on each side, within the frame."""
    height, width = size_yx
    return Window(
        min(max(window.y0 - by, 0), height),
        min(max(window.x0 - by, 0), width),
        max(min(window.y1 + by, height), 0),
        max(min(window.x1 + by, width), 0),
    )
