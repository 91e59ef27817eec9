"""A rendered table-top scene and the exact masks of the things in it.

In: a seed. Out: `RenderedScene`. The same seed gives the same scene, to the byte with the same numpy and
Pillow; other versions may round a few edge pixels differently.

Axes: n = objects in drawing order (farthest first), y/x = image rows/columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.miniature.scenes.backdrop import paint_backdrop
from refdiff.miniature.scenes.canvas import Bool, Float, Sprite
from refdiff.miniature.scenes.layout import Placed, arrange, draw_cast, jittered
from refdiff.miniature.scenes.shapes import draw

HELD_OUT_FROM = 1_000_000
"""Training never sees this seed or a later one."""

PICTURE_SIZES_WH: tuple[tuple[int, int], ...] = (
    (160, 120),
    (120, 160),
    (144, 144),
    (176, 128),
    (192, 112),
    (128, 176),
)
LEAST_VISIBLE = 0.45
LEAST_AREA_PX = 150


@dataclass(frozen=True)
class SceneObject:
    """One thing on the table.

    Attributes:
        kind: one of `KINDS`.
        colour: one of `COLOURS`.
        size: "small", "medium" or "large".
        centre_xy: centre of the visible mask's box, px.
        base_y: the row where it stands, px; larger is nearer.
        diameter_px: its nominal diameter.
        area_px: visible pixels.
        box_xyxy: the visible mask's box, px, right and bottom exclusive.
    """

    kind: str
    colour: str
    size: str
    centre_xy: tuple[float, float]
    base_y: float
    diameter_px: float
    area_px: int
    box_xyxy: tuple[int, int, int, int]


@dataclass(frozen=True)
class RenderedScene:
    """A picture, its objects and their visible pixels.

    Attributes:
        seed: what it was rendered from.
        image: [y, x, 3] uint8 RGB.
        masks: [n, y, x] bool, pairwise disjoint.
        objects: n of them, farthest first.
    """

    seed: int
    image: NDArray[np.uint8]
    masks: Bool
    objects: tuple[SceneObject, ...]


def _stamp(picture: Float, sprites: list[Sprite], placed: list[Placed]) -> tuple[Float, Float]:
    """Lay the sprites over `picture` in order.

    Returns:
        Each object's visible share of each pixel [n, y, x] 0..1, and its full coverage in pixels [n].
    """
    shares = np.zeros((len(sprites), *picture.shape[:2]), np.float32)
    full = np.zeros(len(sprites), np.float32)
    for index, (sprite, item) in enumerate(zip(sprites, placed, strict=True)):
        left = round(item.foot_xy[0] - sprite.foot_xy[0])
        top = round(item.foot_xy[1] - sprite.foot_xy[1])
        height, width = sprite.alpha.shape
        cut = (slice(max(top, 0), top + height), slice(max(left, 0), left + width))
        shown = picture[cut].shape
        inner = (slice(max(-top, 0), max(-top, 0) + shown[0]), slice(max(-left, 0), max(-left, 0) + shown[1]))
        alpha = sprite.alpha[inner]
        picture[cut] = picture[cut] * (1.0 - alpha[:, :, None]) + sprite.rgb[inner]
        shares[(slice(0, index), *cut)] *= 1.0 - alpha
        shares[(index, *cut)] = alpha
        full[index] = np.count_nonzero(sprite.alpha >= 0.5)
    return shares, full


def _visible(shares: Float) -> Bool:
    """[n, y, x]: the object that owns at least half of the pixel; the nearer one wins a tie."""
    masks: Bool = shares >= 0.5
    for index in range(len(masks) - 1):
        masks[index] &= ~masks[index + 1 :].any(axis=0)
    return masks


def _describe(item: Placed, mask: Bool) -> SceneObject:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return SceneObject(
        kind=item.part.kind,
        colour=item.part.colour,
        size=item.part.size,
        centre_xy=centre,
        base_y=item.foot_xy[1],
        diameter_px=item.diameter_px,
        area_px=int(np.count_nonzero(mask)),
        box_xyxy=box,
    )


def _paint(
    placed: list[Placed], size_yx: tuple[int, int], horizon_px: float, light: float, rng: np.random.Generator
) -> tuple[Float, Float, Float]:
    """The picture [y, x, 3] 0..1, and what `_stamp` says about each object."""
    colours = [jittered(item.part.colour, rng) for item in placed]
    picture = paint_backdrop(size_yx, horizon_px, placed, colours, light, rng)
    sprites = [
        draw(item.part.kind, colour, item.diameter_px, light, rng)
        for item, colour in zip(placed, colours, strict=True)
    ]
    return picture, *_stamp(picture, sprites, placed)


def render_scene(seed: int) -> RenderedScene:
    """Render the scene that `seed` names.

    Args:
        seed: 0 or more.

    Returns:
        A picture of 2 to 6 things, each at least `LEAST_VISIBLE` visible and `LEAST_AREA_PX` large.
    """
    rng = np.random.default_rng(seed)
    width, height = PICTURE_SIZES_WH[int(rng.integers(len(PICTURE_SIZES_WH)))]
    light = float(rng.choice((-1.0, 1.0)))
    horizon_px = float(rng.uniform(0.12, 0.3)) * height if rng.random() < 0.5 else 0.0
    parts, attempts = draw_cast(rng), 0
    while True:
        placed = arrange(parts, (width, height), horizon_px, rng)
        picture, shares, full = _paint(placed, (height, width), horizon_px, light, rng)
        masks = _visible(shares)
        if (masks.sum(axis=(1, 2)) >= np.maximum(LEAST_AREA_PX, LEAST_VISIBLE * full)).all():
            break
        attempts += 1
        parts = parts[
            : max(2, len(parts) - attempts // 20)
        ]  # a cast that keeps hiding each other loses its last
    picture += rng.normal(0.0, 0.008, (height, width, 1)).astype(np.float32)
    image = (np.clip(picture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    objects = tuple(_describe(item, mask) for item, mask in zip(placed, masks, strict=True))
    return RenderedScene(seed, image, masks, objects)
