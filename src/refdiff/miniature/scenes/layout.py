"""Who is in a scene, and where each of them stands.

In: a generator and the picture's size. Out: `Placed` things, farthest first, all inside the picture.
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
# Diameter over the picture's short side. Jitter and perspective move it by 11 % at most: no two sizes meet.
SIZES: dict[str, float] = {"small": 0.26, "medium": 0.36, "large": 0.48}


_COUNT_WEIGHTS = (0.15, 0.25, 0.3, 0.2, 0.1)  # for 2..6 objects
_SIZE_WEIGHTS = {  # the more things, the smaller, or they find no room
    2: (0.25, 0.35, 0.4),
    3: (0.3, 0.38, 0.32),
    4: (0.38, 0.4, 0.22),
    5: (0.48, 0.4, 0.12),
    6: (0.58, 0.36, 0.06),
}
_OTHER_SIZE_WEIGHTS = (0.6, 0.4)  # of the two remaining sizes, smaller first
_MARGIN_PX = 2


@dataclass(frozen=True)
class Part:
    """What the cast list says about one thing: its kind, and its colour and size by name."""

    kind: str
    colour: str
    size: str


@dataclass(frozen=True)
class Placed:
    """A thing, the point where it stands and its size; it throws a shadow."""

    part: Part
    foot_xy: tuple[float, float]
    diameter_px: float

    @property
    def reach_px(self) -> tuple[float, float]:
        """Half the width of its shadow, and its height."""
        extent = extent_of(self.part.kind)
        return extent.shadow * self.diameter_px, extent.height * self.diameter_px

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """The box it fills when nothing hides it, px."""
        extent, (x, y) = extent_of(self.part.kind), self.foot_xy
        half, tall = extent.half_width * self.diameter_px, extent.height * self.diameter_px
        return x - half, y - tall, x + half, y


def _with_repeat(names: tuple[str, ...], count: int, repeat: int, rng: np.random.Generator) -> list[str]:
    """`count` names, the first `repeat` of them the same and all others different."""
    picked = [str(name) for name in rng.permutation(names)[: count - repeat + 1]]
    return [picked[0]] * repeat + picked[1:]


def draw_cast(rng: np.random.Generator) -> list[Part]:
    """Draw up who is in the scene: repeated kinds and colours are common."""
    count = 2 + int(rng.choice(5, p=_COUNT_WEIGHTS))
    same_kind = int(rng.integers(2, min(count, 4) + 1)) if rng.random() < 0.6 else 1
    share_colour = 0.5 if same_kind > 1 else 0.25
    same_colour = int(rng.integers(2, min(count, 4) + 1)) if rng.random() < share_colour else 1
    kinds = _with_repeat(KINDS, count, same_kind, rng)
    colours = _with_repeat(tuple(COLOURS), count, same_colour, rng)
    if rng.random() < 0.25:  # otherwise those of one kind share the colour too: size and place must tell
        colours = [str(colour) for colour in rng.permutation(colours)]
    sizes = [str(size) for size in rng.choice(tuple(SIZES), count, p=_SIZE_WEIGHTS[count])]
    if same_kind > 1 and rng.random() < 0.6:  # give "the small one" something to tell apart
        sizes[1] = str(rng.choice([size for size in SIZES if size != sizes[0]], p=_OTHER_SIZE_WEIGHTS))
    return [Part(*triple) for triple in zip(kinds, colours, sizes, strict=True)]


def _crowding(one: Placed, other: Placed) -> float:
    """Shared box area over the smaller box, 0..1."""
    a, b = one.box_xyxy, other.box_xyxy
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    return wide * tall / min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


def _keep_apart(one: Placed, other: Placed, allowed: float) -> bool:
    """Whether they share little enough, and it is clear which of them is in front."""
    return _crowding(one, other) <= allowed and abs(one.foot_xy[1] - other.foot_xy[1]) > 1.5


def _place(
    part: Part, placed: list[Placed], size_wh: tuple[int, int], horizon_px: float, rng: np.random.Generator
) -> Placed | None:
    """Find a place where `part` is inside the picture and hides nobody, or None."""
    width, height = size_wh
    extent = extent_of(part.kind)
    nominal = SIZES[part.size] * min(size_wh) * float(rng.uniform(0.96, 1.04))
    allowed = 0.3 if rng.random() < 0.6 else 0.04
    for _ in range(40):
        depth = float(rng.random())
        diameter = nominal * (0.94 + 0.12 * depth)
        top = max(horizon_px + 4, _MARGIN_PX + extent.height * diameter + 1)
        foot_y = top + depth * (height - _MARGIN_PX - 2 - top)
        edge = extent.half_width * diameter + _MARGIN_PX + 1
        candidate = Placed(part, (float(rng.uniform(edge, width - edge)), foot_y), diameter)
        if all(_keep_apart(candidate, other, allowed) for other in placed):
            return candidate
    return None


def arrange(
    parts: list[Part], size_wh: tuple[int, int], horizon_px: float, rng: np.random.Generator
) -> list[Placed]:
    """Place everything; start over where somebody finds no room, and with one less where that does not help.

    Args:
        parts: the cast.
        size_wh: picture size.
        horizon_px: the row where the table begins.
        rng: the scene's generator.

    Returns:
        Farthest first.
    """
    for _ in range(20):
        placed: list[Placed] = []
        for part in parts:
            spot = _place(part, placed, size_wh, horizon_px, rng)
            if spot is None:
                break
            placed.append(spot)
        if len(placed) == len(parts):
            return sorted(placed, key=lambda item: item.foot_xy[1])
    return arrange(parts[:-1], size_wh, horizon_px, rng)


def jittered(colour: str, rng: np.random.Generator) -> Colour:
    """One of the many shades that go by the name `colour`: RGB, 0..1."""
    hue, hue_jitter, saturation, value, value_jitter = COLOURS[colour]
    turned = hue + hue_jitter * float(rng.uniform(-1, 1))
    bright = min(1.0, value + value_jitter * float(rng.uniform(-1, 1)))
    return colorsys.hsv_to_rgb(turned % 360 / 360, saturation * float(rng.uniform(0.92, 1.08)), bright)
