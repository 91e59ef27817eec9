"""The table, the wall behind it and the shadows on it.

In: image size, colours to avoid, rng. Out: [y, x, 3] float32 RGB, 0..1.
"""

import colorsys
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from refdiff.miniature.scenes.canvas import Colour, Float

_FAR_ENOUGH = 0.36  # RGB distance between the table and any object; below it white on cream is hard to see
_HUES = (0.07, 0.09, 0.11, 0.33, 0.45, 0.55, 0.62, 0.75, 0.95)


class ShadowCaster(Protocol):
    """An object that casts a shadow."""

    @property
    def foot_xy(self) -> tuple[float, float]:
        """Standing point, px."""

    @property
    def reach_px(self) -> tuple[float, float]:
        """Half the width of the shadow, and the height of the object, px."""


def smooth_noise(size_yx: tuple[int, int], cells_yx: tuple[int, int], rng: np.random.Generator) -> Float:
    """Draw smooth noise, [y, x] float32, about -1..1, with `cells_yx` bumps along each axis."""
    coarse = rng.uniform(-1.0, 1.0, cells_yx).astype(np.float32)
    enlarged = Image.fromarray(coarse).resize((size_yx[1], size_yx[0]), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, np.float32)


def draw_table_colour(avoid: Sequence[Colour], rng: np.random.Generator) -> Colour:
    """Draw a muted colour that differs from every colour in `avoid`."""
    best: tuple[float, Colour] = (-1.0, (0.5, 0.5, 0.5))
    for _ in range(24):
        hue = float(rng.choice(_HUES)) + float(rng.uniform(-0.02, 0.02))
        tint = colorsys.hsv_to_rgb(hue % 1.0, float(rng.uniform(0.06, 0.4)), float(rng.uniform(0.42, 0.8)))
        gap = min(float(np.linalg.norm(np.subtract(tint, other))) for other in avoid)
        if gap >= _FAR_ENOUGH:
            return tint
        best = max(best, (gap, tint))
    return best[1]


def _draw_texture(size_yx: tuple[int, int], rng: np.random.Generator) -> Float:
    """Draw the brightness of the table top, around 1: wood grain, woven cloth or plain."""
    height, width = size_yx
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    style = int(rng.integers(3))
    soft = smooth_noise(size_yx, (4, 5), rng)
    if style == 0:
        warp = smooth_noise(size_yx, (5, 3), rng)
        grain = np.sin(y * np.float32(rng.uniform(0.5, 0.9)) + 5.0 * warp)
        grain = grain + smooth_noise(size_yx, (height // 2, 6), rng)
        planks = np.where(np.mod(y + rng.uniform(0, 30), rng.uniform(24, 40)) < 1.2, 0.12, 0.0)
        return (1.0 + 0.04 * grain + 0.03 * soft - planks).astype(np.float32)
    if style == 1:
        pitch = np.float32(2 * np.pi / rng.uniform(3.5, 7.0))
        weave = np.sin(x * pitch) * np.sin(y * pitch)
        return np.asarray(1.0 + 0.05 * weave + 0.04 * soft, np.float32)
    return (1.0 + 0.05 * soft + 0.02 * smooth_noise(size_yx, (height // 3, width // 3), rng)).astype(
        np.float32
    )


def _draw_shadows(size_yx: tuple[int, int], casters: Sequence[ShadowCaster], light: float) -> Float:
    """Draw shadows, [y, x] float32, 1 where lit: a long soft and a tight one under each object."""
    size_wh = (size_yx[1], size_yx[0])
    cast, contact = Image.new("L", size_wh), Image.new("L", size_wh)
    cast_pen, contact_pen = ImageDraw.Draw(cast), ImageDraw.Draw(contact)
    for caster in casters:
        (x, y), (reach, tall) = caster.foot_xy, caster.reach_px
        far = x - light * 0.45 * tall
        left, right = min(x, far) - reach, max(x, far) + reach
        cast_pen.ellipse((left, y - 0.75 * reach, right, y + 0.1 * reach), fill=255)
        contact_pen.ellipse((x - 1.08 * reach, y - 0.55 * reach, x + 1.08 * reach, y + 2.0), fill=255)
    dark = 0.38 * np.asarray(cast.filter(ImageFilter.BoxBlur(4)), np.float32)
    dark += 0.4 * np.asarray(contact.filter(ImageFilter.BoxBlur(2)), np.float32)
    return np.asarray(1.0 - np.minimum(dark, 165.0) / 255.0, np.float32)


def paint_backdrop(
    size_yx: tuple[int, int],
    horizon_px: float,
    casters: Sequence[ShadowCaster],
    avoid: Sequence[Colour],
    light: float,
    rng: np.random.Generator,
) -> Float:
    """Paint everything behind the objects.

    Args:
        size_yx: image size.
        horizon_px: the row where the table meets the wall; 0 or less means no wall.
        casters: the objects.
        avoid: object colours, RGB 0..1.
        light: -1 (from the left) or +1 (from the right).
        rng: generator of the scene.

    Returns:
        [y, x, 3] float32 RGB, 0..1.
    """
    height, width = size_yx
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    y = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    tone = (
        _draw_texture(size_yx, rng)
        * (0.95 + 0.09 * light * x + 0.06 * y)
        * _draw_shadows(size_yx, casters, light)
    )
    image = tone[:, :, None] * np.asarray(draw_table_colour(avoid, rng), np.float32)
    rows = int(horizon_px)
    if rows > 0:
        wall = np.asarray(draw_table_colour(avoid, rng), np.float32)
        glow = (0.98 + 0.1 * light * x + 0.1 * y[:rows]) * (
            1.0 + 0.02 * smooth_noise((rows, width), (2, 6), rng)
        )
        image[:rows] = glow[:, :, None] * wall
        image[rows : rows + 2] *= 0.72
    return image.astype(np.float32)
