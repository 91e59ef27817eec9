"""Choose the objects of a scene and their places.

In: a generator and the image size. Out: `PlacedObject`s, farthest first, all inside the image.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

from refdiff.miniature.scenes.canvas import Colour
from refdiff.miniature.scenes.shapes import KINDS, extent_of

COLOURS: dict[str, tuple[float, float, float, float, float]] = {
    # hue in degrees, its jitter, saturation, value, jitter of value
    "red": (356, 6, 0.88, 0.82, 0.08),
    "green": (128, 14, 0.75, 0.62, 0.1),
    "blue": (218, 9, 0.82, 0.82, 0.1),
    "yellow": (52, 3, 0.86, 0.95, 0.04),
    "orange": (25, 3, 0.92, 0.97, 0.03),
    "purple": (280, 9, 0.66, 0.66, 0.08),
    "white": (45, 40, 0.03, 0.95, 0.03),
    "black": (230, 40, 0.12, 0.15, 0.03),
}
SIZES: dict[str, float] = {"small": 0.26, "medium": 0.36, "large": 0.48}
"""Diameter relative to the shorter image side. Jitter and perspective change it by 11 % at most, so that
sizes stay distinct."""

_COUNT_WEIGHTS = (0.15, 0.25, 0.3, 0.2, 0.1)  # for 2..6 objects
_SIZE_WEIGHTS = {  # more objects are smaller, or they do not fit
    2: (0.25, 0.35, 0.4),
    3: (0.3, 0.38, 0.32),
    4: (0.38, 0.4, 0.22),
    5: (0.48, 0.4, 0.12),
    6: (0.58, 0.36, 0.06),
}
_OTHER_SIZE_WEIGHTS = (0.6, 0.4)  # weights of the two remaining sizes, smaller first
_MARGIN_PX = 2


@dataclass(frozen=True)
class ObjectSpec:
    """The kind of an object, and the names of its colour and size."""

    kind: str
    colour: str
    size: str


@dataclass(frozen=True)
class PlacedObject:
    """An object with its standing point and diameter."""

    spec: ObjectSpec
    foot_xy: tuple[float, float]
    diameter_px: float

    @property
    def reach_px(self) -> tuple[float, float]:
        """Half the width of the shadow, and the height of the object, px."""
        extent = extent_of(self.spec.kind)
        return extent.shadow * self.diameter_px, extent.height * self.diameter_px

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """Box of the object if nothing hides it, px."""
        extent, (x, y) = extent_of(self.spec.kind), self.foot_xy
        half, tall = extent.half_width * self.diameter_px, extent.height * self.diameter_px
        return x - half, y - tall, x + half, y


def _draw_names(names: tuple[str, ...], count: int, repeat: int, rng: np.random.Generator) -> list[str]:
    """Draw `count` names, the first `repeat` of them the same and all others different."""
    picked = [str(name) for name in rng.permutation(names)[: count - repeat + 1]]
    return [picked[0]] * repeat + picked[1:]


def draw_objects(rng: np.random.Generator) -> list[ObjectSpec]:
    """Draw the objects of a scene; repeated kinds and colours are common."""
    count = 2 + int(rng.choice(5, p=_COUNT_WEIGHTS))
    same_kind = int(rng.integers(2, min(count, 4) + 1)) if rng.random() < 0.6 else 1
    share_colour = 0.5 if same_kind > 1 else 0.25
    same_colour = int(rng.integers(2, min(count, 4) + 1)) if rng.random() < share_colour else 1
    kinds = _draw_names(KINDS, count, same_kind, rng)
    colours = _draw_names(tuple(COLOURS), count, same_colour, rng)
    if (
        rng.random() < 0.25
    ):  # otherwise objects of one kind share the colour too, and differ in size and place
        colours = [str(colour) for colour in rng.permutation(colours)]
    sizes = [str(size) for size in rng.choice(tuple(SIZES), count, p=_SIZE_WEIGHTS[count])]
    if same_kind > 1 and rng.random() < 0.6:  # two sizes of one kind, for phrases such as "the small one"
        sizes[1] = str(rng.choice([size for size in SIZES if size != sizes[0]], p=_OTHER_SIZE_WEIGHTS))
    return [ObjectSpec(*triple) for triple in zip(kinds, colours, sizes, strict=True)]


def _overlap(one: PlacedObject, other: PlacedObject) -> float:
    """Return the shared box area relative to the smaller box, 0..1."""
    a, b = one.box_xyxy, other.box_xyxy
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    return wide * tall / min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


def _are_apart(one: PlacedObject, other: PlacedObject, allowed: float) -> bool:
    """Return whether two objects overlap little enough, and it is clear which of them is in front."""
    return _overlap(one, other) <= allowed and abs(one.foot_xy[1] - other.foot_xy[1]) > 1.5


def _place(
    spec: ObjectSpec,
    placed: list[PlacedObject],
    size_wh: tuple[int, int],
    horizon_px: float,
    rng: np.random.Generator,
) -> PlacedObject | None:
    """Find a place inside the image where an object hides no other, or None."""
    width, height = size_wh
    extent = extent_of(spec.kind)
    nominal = SIZES[spec.size] * min(size_wh) * float(rng.uniform(0.96, 1.04))
    allowed = 0.3 if rng.random() < 0.6 else 0.04
    for _ in range(40):
        depth = float(rng.random())
        diameter = nominal * (0.94 + 0.12 * depth)
        top = max(horizon_px + 4, _MARGIN_PX + extent.height * diameter + 1)
        foot_y = top + depth * (height - _MARGIN_PX - 2 - top)
        edge = extent.half_width * diameter + _MARGIN_PX + 1
        candidate = PlacedObject(spec, (float(rng.uniform(edge, width - edge)), foot_y), diameter)
        if all(_are_apart(candidate, other, allowed) for other in placed):
            return candidate
    return None


def arrange(
    specs: list[ObjectSpec], size_wh: tuple[int, int], horizon_px: float, rng: np.random.Generator
) -> list[PlacedObject]:
    """Place all objects; if one does not fit, start again, and after 20 attempts without the last object.

    Args:
        specs: the objects.
        size_wh: image size.
        horizon_px: the row where the table begins.
        rng: generator of the scene.

    Returns:
        The placed objects, farthest first.
    """
    for _ in range(20):
        placed: list[PlacedObject] = []
        for spec in specs:
            spot = _place(spec, placed, size_wh, horizon_px, rng)
            if spot is None:
                break
            placed.append(spot)
        if len(placed) == len(specs):
            return sorted(placed, key=lambda item: item.foot_xy[1])
    return arrange(specs[:-1], size_wh, horizon_px, rng)


def jitter_colour(colour: str, rng: np.random.Generator) -> Colour:
    """Draw one of the shades that are called `colour`: RGB, 0..1."""
    hue, hue_jitter, saturation, value, value_jitter = COLOURS[colour]
    turned = hue + hue_jitter * float(rng.uniform(-1, 1))
    bright = min(1.0, value + value_jitter * float(rng.uniform(-1, 1)))
    return colorsys.hsv_to_rgb(turned % 360 / 360, saturation * float(rng.uniform(0.92, 1.08)), bright)
