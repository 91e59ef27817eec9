"""The shapes of the objects on the table.

In: kind, base colour, diameter, light side. Out: a `Sprite`. A shape is painted part by part, back to front,
in diameters from its standing point (see `canvas`).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from refdiff.miniature.scenes.canvas import Canvas, Colour, Extent, Points, Sprite

_CREAM: Colour = (0.95, 0.92, 0.82)
_WICK: Colour = (0.12, 0.1, 0.08)
_FLAME: Colour = (1.0, 0.62, 0.12)
_GLOW: Colour = (1.0, 0.93, 0.6)


def _mug(canvas: Canvas, rng: np.random.Generator) -> None:
    side = float(rng.choice((-1.0, 1.0)))
    handle = canvas.ellipse(side * 0.36, 0.46, 0.23, 0.25) & ~canvas.ellipse(side * 0.36, 0.46, 0.13, 0.15)
    canvas.paint(handle, 0.95 if side == canvas.light else 0.62)
    canvas.paint_revolved(((0.0, 0.33), (0.7, 0.36)), 0.3)
    canvas.paint(canvas.ellipse(0.0, 0.8, 0.36, 0.12), 1.15, 0.08)
    canvas.paint(canvas.ellipse(0.0, 0.795, 0.31, 0.09), 0.5 - 0.5 * canvas.light * canvas.x)


def _ball(canvas: Canvas, _rng: np.random.Generator) -> None:
    u, v = canvas.x / 0.5, (canvas.y - 0.47) / 0.5
    square = u * u + v * v
    depth = np.sqrt(np.maximum(1.0 - square, 0.0))
    facing = 0.5 * canvas.light * u + 0.6 * v + 0.62 * depth
    mirror = 0.28 * canvas.light * u + 0.38 * v + 0.88 * depth
    canvas.paint(square <= 1.0, 0.38 + 0.72 * np.maximum(facing, 0.0), 0.75 * np.maximum(mirror, 0.0) ** 60)


def _block(canvas: Canvas, rng: np.random.Generator) -> None:
    side = float(rng.choice((-1.0, 1.0)))
    near, far, deep = -0.45 * side, 0.2 * side, 0.25 * side
    lit = 0.92 if side == canvas.light else 0.5
    canvas.paint(canvas.polygon(((far, 0.0), (far + deep, 0.22), (far + deep, 0.88), (far, 0.66))), lit)
    lid = ((near, 0.66), (far, 0.66), (far + deep, 0.88), (near + deep, 0.88))
    canvas.paint(canvas.polygon(lid), 1.15, 0.1)
    canvas.paint(canvas.polygon(((near, 0.0), (far, 0.0), (far, 0.66), (near, 0.66))), 0.7 + 0.14 * canvas.y)


def _bowl(canvas: Canvas, _rng: np.random.Generator) -> None:
    profile = ((0.0, 0.2), (0.05, 0.2), (0.08, 0.27), (0.16, 0.37), (0.26, 0.44), (0.4, 0.5))
    canvas.paint_revolved(profile, 0.25)
    canvas.paint(canvas.ellipse(0.0, 0.45, 0.5, 0.16), 1.15, 0.1)
    hollow = 0.62 - 0.5 * canvas.light * canvas.x - 0.9 * (canvas.y - 0.45)
    canvas.paint(canvas.ellipse(0.0, 0.445, 0.45, 0.125), hollow)


def _bottle(canvas: Canvas, _rng: np.random.Generator) -> None:
    profile = ((0.0, 0.2), (0.02, 0.21), (0.58, 0.21), (0.66, 0.19), (0.74, 0.11), (0.8, 0.075), (1.05, 0.07))
    canvas.paint_revolved(profile, 0.3, gloss=0.45)
    red, green, blue = (0.35 * part + 0.62 for part in canvas.colour)
    sag = 0.06 * np.sqrt(1.0 - np.minimum(1.0, (canvas.x / 0.21) ** 2))
    label = (np.abs(canvas.x) <= 0.21) & (np.abs(canvas.y - 0.34 + sag) <= 0.11)
    canvas.paint(label, 0.75 + 0.9 * canvas.light * canvas.x, colour=(red, green, blue))
    canvas.paint((np.abs(canvas.x) <= 0.085) & (np.abs(canvas.y - 1.06) <= 0.05), 0.6, 0.12)


def _book(canvas: Canvas, rng: np.random.Generator) -> None:
    lean = float(rng.choice((-1.0, 1.0)))

    def slab(y: float, grow: float = 0.0) -> Points:
        front, rear = -0.07 * lean, 0.07 * lean
        wide = 0.48 + grow
        return [(front - wide, y), (front + wide, y), (rear + 0.43, y + 0.38), (rear - 0.43, y + 0.38)]

    canvas.paint(canvas.polygon(slab(0.0, 0.01)), 0.6)
    for step in range(1, 7):
        canvas.paint(canvas.polygon(slab(0.02 * step)), 0.78 if step % 2 else 0.98, colour=_CREAM)
    canvas.paint(canvas.polygon(slab(0.14, 0.01)), 0.6)
    canvas.paint(canvas.polygon(slab(0.17, 0.01)), 0.95 + 0.25 * canvas.light * canvas.x, 0.05)
    for low, high, wide in ((0.25, 0.29, 0.24), (0.36, 0.4, 0.3)):
        line = [(-wide, low), (wide, low), (wide - 0.01, high), (-wide + 0.01, high)]
        canvas.paint(canvas.polygon(line), 0.55, 0.3)
    spine = -lean
    near, far = -0.07 * lean + spine * 0.48, 0.07 * lean + spine * 0.43
    near_edge, far_edge = near - 0.05 * spine, far - 0.05 * spine
    canvas.paint(canvas.polygon([(near, 0.0), (near_edge, 0.0), (near_edge, 0.17), (near, 0.17)]), 0.7)
    canvas.paint(canvas.polygon([(near, 0.17), (near_edge, 0.17), (far_edge, 0.55), (far, 0.55)]), 0.72)


def _plate(canvas: Canvas, _rng: np.random.Generator) -> None:
    canvas.paint(canvas.ellipse(0.0, 0.25, 0.55, 0.25), 0.5)
    rim = 0.98 + 0.3 * canvas.light * canvas.x
    canvas.paint(canvas.ellipse(0.0, 0.28, 0.55, 0.25), rim, 0.04)
    canvas.paint(canvas.ellipse(0.0, 0.275, 0.37, 0.16), 0.62)
    canvas.paint(canvas.ellipse(0.0, 0.262, 0.36, 0.15), 0.9 - 0.35 * canvas.light * canvas.x, 0.06)


def _star(canvas: Canvas, rng: np.random.Generator) -> None:
    turn = float(rng.uniform(-0.12, 0.12))
    angles = turn + np.pi / 2 + np.arange(11) * np.pi / 5
    reach = np.where(np.arange(11) % 2 == 0, 0.54, 0.24)
    tips = [(float(r * np.cos(a)), float(0.46 + r * np.sin(a))) for r, a in zip(reach, angles, strict=True)]
    canvas.paint(canvas.polygon([(x, y - 0.035) for x, y in tips]), 0.42)
    for first, second in pairwise(tips):
        edge = np.arctan2(second[0] - first[0], first[1] - second[1])
        shade = 0.85 + 0.3 * np.cos(edge + (0.9 if canvas.light > 0 else np.pi - 0.9))
        canvas.paint(canvas.polygon([first, second, (0.0, 0.46)]), float(shade), 0.03)


_VASE_HEIGHTS = (0.0, 0.06, 0.2, 0.36, 0.5, 0.64, 0.74, 0.84, 0.92)
_VASE_RADII = (0.16, 0.17, 0.29, 0.35, 0.3, 0.17, 0.12, 0.15, 0.25)


def _vase(canvas: Canvas, _rng: np.random.Generator) -> None:
    heights = np.linspace(0.0, 0.92, 24)
    radii = np.interp(heights, _VASE_HEIGHTS, _VASE_RADII)
    radii[1:-1] = (radii[:-2] + radii[1:-1] + radii[2:]) / 3
    canvas.paint_revolved(tuple(zip(heights.tolist(), radii.tolist(), strict=True)), 0.3, gloss=0.4)
    canvas.paint(canvas.ellipse(0.0, 0.965, 0.25, 0.065), 1.15, 0.1)
    canvas.paint(canvas.ellipse(0.0, 0.963, 0.2, 0.042), 0.35)


def _candle(canvas: Canvas, _rng: np.random.Generator) -> None:
    canvas.paint_revolved(((0.0, 0.19), (0.66, 0.19)), 0.32, gloss=0.12)
    canvas.paint(canvas.ellipse(0.0, 0.72, 0.19, 0.06), 1.15, 0.12)
    canvas.paint((np.abs(canvas.x) <= 0.018) & (np.abs(canvas.y - 0.77) <= 0.06), 1.0, colour=_WICK)
    for size, colour in ((1.0, _FLAME), (0.6, _GLOW)):
        narrow = 0.085 * size * np.sqrt(np.clip((1.06 - canvas.y) / 0.2, 0.0, 1.0))
        flame = (np.abs(canvas.x) <= narrow) & (canvas.y >= 0.84) & (canvas.y <= 0.84 + 0.22 * size)
        canvas.paint(flame | canvas.ellipse(0.0, 0.85, 0.085 * size, 0.06 * size), colour=colour)


_Draw: TypeAlias = Callable[[Canvas, np.random.Generator], None]

_SHAPES: dict[str, tuple[Extent, _Draw]] = {
    "mug": (Extent(0.6, 0.93, 0.34), _mug),
    "ball": (Extent(0.5, 0.97, 0.34), _ball),
    "block": (Extent(0.46, 0.88, 0.42), _block),
    "bowl": (Extent(0.5, 0.62, 0.3), _bowl),
    "bottle": (Extent(0.22, 1.12, 0.22), _bottle),
    "book": (Extent(0.58, 0.56, 0.54), _book),
    "plate": (Extent(0.56, 0.53, 0.54), _plate),
    "star": (Extent(0.56, 1.01, 0.36), _star),
    "vase": (Extent(0.36, 1.04, 0.24), _vase),
    "candle": (Extent(0.2, 1.08, 0.2), _candle),
}

KINDS: tuple[str, ...] = tuple(_SHAPES)


def extent_of(kind: str) -> Extent:
    """Return the distances that `kind` covers from its standing point, in diameters."""
    return _SHAPES[kind][0]


def draw(kind: str, colour: Colour, diameter_px: float, light: float, rng: np.random.Generator) -> Sprite:
    """Draw one object.

    Args:
        kind: one of `KINDS`.
        colour: base RGB, 0..1.
        diameter_px: size of one drawing unit.
        light: -1 (from the left) or +1 (from the right).
        rng: draws small variations such as the side of a handle.

    Returns:
        The antialiased sprite.
    """
    extent, paint = _SHAPES[kind]
    canvas = Canvas(extent, diameter_px, colour, light)
    paint(canvas, rng)
    return canvas.to_sprite()
