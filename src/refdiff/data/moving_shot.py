"""A table whose objects move, and one frame of it.

In: a generator, a size and rates. Out: pixels, and which object every pixel shows. Places are px of the
table, which is larger than the frame; the camera pans over it.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.optional import load_cv2
from refdiff.contracts.session import ImageArray
from refdiff.miniature.scenes.backdrop import paint_backdrop
from refdiff.miniature.scenes.canvas import Colour
from refdiff.miniature.scenes.layout import PlacedObject, arrange, draw_objects, jitter_colour
from refdiff.miniature.scenes.shapes import draw, extent_of

DRAWING = "drawing moving scenes"
"""What OpenCV is needed for."""

_BACKDROP_SIDE = 120
"""Shorter side in px at which the table is painted, as in the scenes that the miniature was trained on."""
_BEND = 0.98
"""Share of a swing that is even; at 1 it would turn back at once."""
_PAN_MARGIN = 0.08
"""Of the frame's width: the table's surplus on each side."""


class Rates(NamedTuple):
    """How fast things change, in a frame; px are those of a frame of 640 px."""

    speed_px: tuple[float, float]
    """Range that the speed of an object is drawn from."""
    pan_px: float
    turn_deg: float
    turn_range_deg: float
    squeeze_range: float
    """Share of its width that an object loses, as one does that turns away."""


@dataclass(frozen=True)
class _Swing:
    """A value that goes back and forth between two ends at an almost constant rate."""

    low: float
    high: float
    rate: float
    """Per frame."""
    start: float
    rises: bool = True

    def at(self, number: int) -> float:
        half = (self.high - self.low) / 2
        if half <= 0 or self.rate <= 0:
            return self.start
        full = math.asin(_BEND)
        level = min(1.0, max(-1.0, (self.start - self.low) / half - 1))
        phase = math.asin(min(1.0, max(-1.0, math.sin(level * full) / _BEND)))
        angle = phase if self.rises else math.pi - phase
        angle += 2 * math.pi * number * self.rate / (4 * half)
        return self.low + half * (1 + math.asin(_BEND * math.sin(angle)) / full)


@dataclass(frozen=True, eq=False)
class _Mover:
    """An object with its look and its path."""

    rgba: NDArray[np.uint8]
    """[y, x, 4], premultiplied."""
    shade: NDArray[np.uint8]
    """[y, x, 3]: the table's brightness around the standing point, which is in the middle; 255 where lit."""
    foot_xy: tuple[float, float]
    """Standing point in `rgba`."""
    x: _Swing
    y: _Swing
    turn_deg: _Swing
    size: _Swing
    squeeze: _Swing

    def foot_at(self, number: int, pan_xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standing point in the frame."""
        return np.array([self.x.at(number), self.y.at(number)]) - pan_xy

    def to_frame(self, number: int, pan_xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the map [2, 3] from px of `rgba` to px of the frame; the object turns about its middle."""
        angle, size, squeeze = (swing.at(number) for swing in (self.turn_deg, self.size, self.squeeze))
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        matrix = size * np.array([[cos * squeeze, -sin], [sin * squeeze, cos]])
        middle = np.array(self.rgba.shape[1::-1]) / 2
        target = self.foot_at(number, pan_xy) + size * (middle - self.foot_xy)
        return np.concatenate([matrix, (target - matrix @ middle)[:, None]], axis=1)


@dataclass(frozen=True, eq=False)
class Shot:
    """One table with its objects, farthest first."""

    size_yx: tuple[int, int]
    """Size of the frame."""
    table: ImageArray
    """[y, x, 3]."""
    pan: tuple[_Swing, _Swing]
    movers: tuple[_Mover, ...]
    placed: tuple[PlacedObject, ...]
    """The objects in the first frame."""
    leaver: int
    """The object that leaves the picture and comes back."""

    def paint(self, number: int) -> tuple[ImageArray, NDArray[np.uint8]]:
        """Return a frame's pixels [y, x, 3], and [y, x] 1 + the object that a pixel shows, or 0."""
        cv2, (height, width) = load_cv2(DRAWING), self.size_yx
        pan_xy = np.array([self.pan[0].at(number), self.pan[1].at(number)])
        shift = np.concatenate([np.eye(2), -pan_xy[:, None]], axis=1)
        pixels = cv2.warpAffine(self.table, shift, (width, height), flags=cv2.INTER_LINEAR)
        for mover in self.movers:
            corner = np.round(mover.foot_at(number, pan_xy) - np.array(mover.shade.shape[1::-1]) / 2)
            area, inner = _overlap(self.size_yx, mover.shade.shape[:2], corner.astype(int))
            if pixels[area].size:
                pixels[area] = cv2.multiply(pixels[area], mover.shade[inner], scale=1 / 255)
        owner = np.zeros(self.size_yx, np.uint8)
        for place, mover in enumerate(self.movers, start=1):
            self._paint_object(pixels, owner, place, mover.to_frame(number, pan_xy))
        return pixels, owner

    def _paint_object(
        self, pixels: ImageArray, owner: NDArray[np.uint8], place: int, to_frame: NDArray[np.float64]
    ) -> None:
        cv2, rgba = load_cv2(DRAWING), self.movers[place - 1].rgba
        height, width = rgba.shape[:2]
        corners = to_frame @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
        low = np.floor(corners.min(axis=1)).astype(int)
        size_xy = np.ceil(corners.max(axis=1)).astype(int) + 1 - low
        area, inner = _overlap(self.size_yx, (int(size_xy[1]), int(size_xy[0])), low)
        if not pixels[area].size:
            return
        local = to_frame - np.array([[0.0, 0.0, low[0]], [0.0, 0.0, low[1]]])
        drawn = cv2.warpAffine(rgba, local, (int(size_xy[0]), int(size_xy[1])), flags=cv2.INTER_LINEAR)[inner]
        alpha = drawn[:, :, 3]
        behind = cv2.merge([255 - alpha] * 3)
        pixels[area] = cv2.add(cv2.multiply(pixels[area], behind, scale=1 / 255), drawn[:, :, :3])
        owner[area][alpha >= 128] = place


def _overlap(
    frame_yx: tuple[int, int], part_yx: tuple[int, ...], corner_xy: NDArray[np.int64]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return where a part lies in the frame, and which cut of the part that is; both may be empty."""
    area, inner = [], []
    for side, part, start in zip(frame_yx, part_yx, corner_xy[::-1].tolist(), strict=True):
        low, high = min(max(start, 0), side), max(min(start + part, side), 0)
        area.append(slice(low, max(low, high)))
        inner.append(slice(low - start, max(low, high) - start))
    return (area[0], area[1]), (inner[0], inner[1])


def draw_shot(size_yx: tuple[int, int], rates: Rates, rng: np.random.Generator) -> Shot:
    """Draw a table with objects at their first places, and their paths."""
    height, width = size_yx
    cv2, margin, scale = load_cv2(DRAWING), round(_PAN_MARGIN * width), max(size_yx) / 640
    light = float(rng.choice((-1.0, 1.0)))
    horizon = float(rng.uniform(0.12, 0.3)) * height if rng.random() < 0.5 else 0.0
    specs = draw_objects(rng)
    placed = arrange(specs if len(specs) > 2 else [*specs, *draw_objects(rng)], (width, height), horizon, rng)
    colours = [jitter_colour(item.spec.colour, rng) for item in placed]
    share = _BACKDROP_SIDE / min(size_yx)
    table_yx = height + 2 * margin, width + 2 * margin
    small_yx = round(table_yx[0] * share), round(table_yx[1] * share)
    table = paint_backdrop(small_yx, (horizon + margin) * share if horizon else 0.0, (), colours, light, rng)
    table = (np.clip(table, 0.0, 1.0) * 255).astype(np.uint8)
    table = cv2.resize(table, table_yx[::-1], interpolation=cv2.INTER_CUBIC)
    rises = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    pan_px = rates.pan_px * scale
    pan = (
        _Swing(0.0, 2.0 * margin, pan_px, float(margin), rises[0]),
        _Swing(0.5 * margin, 1.5 * margin, 0.3 * pan_px, float(margin), rises[1]),
    )
    leaver = int(rng.integers(len(placed)))
    movers = [
        _draw_mover(item, colour, size_yx, (light, rates), place == leaver, rng)
        for place, (item, colour) in enumerate(zip(placed, colours, strict=True))
    ]
    return Shot(size_yx, table, pan, tuple(movers), tuple(placed), leaver)


def _draw_mover(
    item: PlacedObject,
    colour: Colour,
    size_yx: tuple[int, int],
    look: tuple[float, Rates],
    leaves: bool,  # noqa: FBT001 - private
    rng: np.random.Generator,
) -> _Mover:
    light, rates = look
    sprite = draw(item.spec.kind, colour, item.diameter_px, light, rng)
    rgba = np.concatenate([sprite.rgb, sprite.alpha[:, :, None]], axis=2)
    (height, width), scale = size_yx, max(size_yx) / 640
    margin = round(_PAN_MARGIN * width)
    speed = float(rng.uniform(*rates.speed_px)) * scale
    edge = (extent_of(item.spec.kind).half_width + 0.1) * item.diameter_px
    foot_x, foot_y = item.foot_xy
    low, high = edge + rng.uniform(0, 0.25) * width, width - edge - rng.uniform(0, 0.25) * width
    low, high = min(float(low), foot_x), max(float(high), foot_x)
    goes_right = bool(rng.random() < 0.5)
    if leaves:  # by the side that is nearer, at once
        goes_right = foot_x > width / 2
        beyond = edge + margin + 0.1 * width
        low, high = (low, width + beyond) if goes_right else (-beyond, high)
    bob = 0.04 * height
    return _Mover(
        rgba=(np.clip(rgba, 0.0, 1.0) * 255 + 0.5).astype(np.uint8),
        shade=_draw_shadow(item, light),
        foot_xy=sprite.foot_xy,
        x=_Swing(low + margin, high + margin, speed, foot_x + margin, goes_right),
        y=_Swing(foot_y + margin - bob, foot_y + margin + bob, 0.2 * speed, foot_y + margin),
        turn_deg=_Swing(
            -rates.turn_range_deg, rates.turn_range_deg, rates.turn_deg, 0.0, bool(rng.random() < 0.5)
        ),
        size=_Swing(0.94, 1.1, 0.0005 * speed / scale, 1.0, bool(rng.random() < 0.5)),
        squeeze=_Swing(1.0 - rates.squeeze_range, 1.0, 0.0005 * speed / scale, 1.0),
    )


def _draw_shadow(item: PlacedObject, light: float) -> NDArray[np.uint8]:
    """Draw the light [y, x, 3] on the table around an object: a long soft shadow, and a tight one."""
    cv2 = load_cv2(DRAWING)
    reach, tall = item.reach_px
    half_x, half_y = round(2 * reach + 0.5 * tall), round(1.2 * reach)
    middle = np.array([half_x, half_y])
    far = -light * 0.45 * tall
    shade = np.ones((2 * half_y, 2 * half_x), np.float32)
    for x0, x1, y0, y1, depth, blur in (
        (min(0.0, far) - reach, max(0.0, far) + reach, -0.75 * reach, 0.1 * reach, 0.38, 0.15),
        (-1.08 * reach, 1.08 * reach, -0.55 * reach, 0.03 * reach, 0.4, 0.07),
    ):
        dark = np.zeros_like(shade)
        centre = middle + np.array([x0 + x1, y0 + y1]) / 2
        axes = round((x1 - x0) / 2), round((y1 - y0) / 2)
        cv2.ellipse(dark, (round(centre[0]), round(centre[1])), axes, 0, 0, 360, 1.0, -1)
        shade -= depth * cv2.GaussianBlur(dark, (0, 0), max(1.0, blur * reach))
    lit = (np.clip(shade, 0.35, 1.0) * 255 + 0.5).astype(np.uint8)
    return np.repeat(lit[:, :, None], 3, axis=2)
