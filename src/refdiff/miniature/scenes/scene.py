"""A rendered table-top scene and the exact masks of its objects.

In: a seed. Out: `RenderedScene`. The same seed gives the same scene, to the byte with the same numpy and
Pillow; other versions may round a few edge pixels differently.

Axes: n = objects in drawing order (farthest first), y/x = image rows/columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.miniature.scenes.backdrop import paint_backdrop
from refdiff.miniature.scenes.canvas import Bool, Float, Sprite
from refdiff.miniature.scenes.layout import PlacedObject, arrange, draw_objects, jitter_colour
from refdiff.miniature.scenes.shapes import draw

HELD_OUT_FROM = 1_000_000
"""First held-out seed: training uses neither it nor a later one."""

IMAGE_SIZES_WH: tuple[tuple[int, int], ...] = (
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
    """An object on the table.

    Attributes:
        kind: one of `KINDS`.
        colour: one of `COLOURS`.
        size: "small", "medium" or "large".
        centre_xy: centre of the visible mask's box, px.
        base_y: row of the standing point, px; larger is nearer.
        diameter_px: nominal diameter.
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
    """An image, its objects and their visible pixels.

    Attributes:
        seed: seed of the scene.
        image: [y, x, 3] uint8 RGB.
        masks: [n, y, x] bool, pairwise disjoint.
        objects: [n], farthest first.
    """

    seed: int
    image: NDArray[np.uint8]
    masks: Bool
    objects: tuple[SceneObject, ...]


def _composite(pixels: Float, sprites: list[Sprite], placed: list[PlacedObject]) -> tuple[Float, Float]:
    """Draw the sprites over `pixels` in order.

    Returns:
        The visible share of each pixel for each object [n, y, x], 0..1, and the full coverage in px [n].
    """
    shares = np.zeros((len(sprites), *pixels.shape[:2]), np.float32)
    full = np.zeros(len(sprites), np.float32)
    for index, (sprite, item) in enumerate(zip(sprites, placed, strict=True)):
        left = round(item.foot_xy[0] - sprite.foot_xy[0])
        top = round(item.foot_xy[1] - sprite.foot_xy[1])
        height, width = sprite.alpha.shape
        cut = (slice(max(top, 0), top + height), slice(max(left, 0), left + width))
        shown = pixels[cut].shape
        inner = (slice(max(-top, 0), max(-top, 0) + shown[0]), slice(max(-left, 0), max(-left, 0) + shown[1]))
        alpha = sprite.alpha[inner]
        pixels[cut] = pixels[cut] * (1.0 - alpha[:, :, None]) + sprite.rgb[inner]
        shares[(slice(0, index), *cut)] *= 1.0 - alpha
        shares[(index, *cut)] = alpha
        full[index] = np.count_nonzero(sprite.alpha >= 0.5)
    return shares, full


def _visible_masks(shares: Float) -> Bool:
    """Return masks [n, y, x] of the pixels that an object covers by half; the nearer one wins a tie."""
    masks: Bool = shares >= 0.5
    for index in range(len(masks) - 1):
        masks[index] &= ~masks[index + 1 :].any(axis=0)
    return masks


def describe_object(item: PlacedObject, mask: Bool) -> SceneObject:
    """Describe an object by its visible pixels [y, x]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return SceneObject(
        kind=item.spec.kind,
        colour=item.spec.colour,
        size=item.spec.size,
        centre_xy=centre,
        base_y=item.foot_xy[1],
        diameter_px=item.diameter_px,
        area_px=int(np.count_nonzero(mask)),
        box_xyxy=box,
    )


def _paint(
    placed: list[PlacedObject],
    size_yx: tuple[int, int],
    horizon_px: float,
    light: float,
    rng: np.random.Generator,
) -> tuple[Float, Float, Float]:
    """Paint the scene; returns its pixels [y, x, 3], 0..1, and the result of `_composite`."""
    colours = [jitter_colour(item.spec.colour, rng) for item in placed]
    pixels = paint_backdrop(size_yx, horizon_px, placed, colours, light, rng)
    sprites = [
        draw(item.spec.kind, colour, item.diameter_px, light, rng)
        for item, colour in zip(placed, colours, strict=True)
    ]
    return pixels, *_composite(pixels, sprites, placed)


def render_scene(seed: int) -> RenderedScene:
    """Render the scene of a seed.

    Args:
        seed: 0 or more.

    Returns:
        A scene of 2 to 6 objects, each at least `LEAST_VISIBLE` visible and `LEAST_AREA_PX` large.
    """
    rng = np.random.default_rng(seed)
    width, height = IMAGE_SIZES_WH[int(rng.integers(len(IMAGE_SIZES_WH)))]
    light = float(rng.choice((-1.0, 1.0)))
    horizon_px = float(rng.uniform(0.12, 0.3)) * height if rng.random() < 0.5 else 0.0
    specs, attempts = draw_objects(rng), 0
    while True:
        placed = arrange(specs, (width, height), horizon_px, rng)
        pixels, shares, full = _paint(placed, (height, width), horizon_px, light, rng)
        masks = _visible_masks(shares)
        if (masks.sum(axis=(1, 2)) >= np.maximum(LEAST_AREA_PX, LEAST_VISIBLE * full)).all():
            break
        attempts += 1
        # Objects that keep hiding each other lose the last of them.
        specs = specs[: max(2, len(specs) - attempts // 20)]
    pixels += rng.normal(0.0, 0.008, (height, width, 1)).astype(np.float32)
    image = (np.clip(pixels, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    objects = tuple(describe_object(item, mask) for item, mask in zip(placed, masks, strict=True))
    return RenderedScene(seed, image, masks, objects)
