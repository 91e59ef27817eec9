"""Draw an answer's mask on the image, and the heatmap.

Image [y, x, 3] uint8 RGB in, image out. Small images are enlarged first, so that the label is legible.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refdiff.contracts.session import Bool, Float, ImageArray

LEAST_SIDE = 480
"""A longer side below this many px is enlarged by a whole factor."""

_DIMMED = 0.45
_LINE, _CASING = (255, 60, 190), (0, 0, 0)  # magenta: rare in photographs
_STRIP_COLOR, _CAPTION_COLOR, _NOTE_COLOR = (24, 24, 28), (255, 255, 255), (240, 190, 110)
_HEAT_STOPS = np.array(  # dark blue, violet, orange, light yellow: brightness rises all the way
    [[10, 8, 60], [110, 30, 130], [220, 80, 60], [250, 170, 40], [255, 250, 200]], dtype=np.float32
)
_HEAT_SHARE = 0.65


def draw_answer(image: ImageArray, mask: Bool, *, caption: str = "", note: str = "") -> ImageArray:
    """Outline the mask and dim what is around it; the object keeps its colors.

    Args:
        image: [y, x, 3].
        mask: [y, x]; an empty one leaves the image as it is.
        caption: drawn on a strip below the image, if there is one.
        note: drawn below the caption in smaller letters.
    """
    factor = _enlargement(image.shape[:2])
    painted = _enlarge(image, factor).copy()
    if mask.any():
        large = mask.repeat(factor, axis=0).repeat(factor, axis=1)
        painted[~large] = (painted[~large] * _DIMMED).astype(np.uint8)
        _draw_outline(painted, large, thickness=max(2, round(max(large.shape) / 160)))
    return _add_label(painted, caption, note) if caption else painted


def heat_overlay(image: ImageArray, heat: Float) -> ImageArray:
    """Return the heatmap [y, x], 0..1, in color over the image in gray."""
    factor = _enlargement(image.shape[:2])
    gray = np.asarray(Image.fromarray(_enlarge(image, factor)).convert("L"), dtype=np.float32)[..., None]
    resized = Image.fromarray(np.asarray(heat, dtype=np.float32)).resize(
        gray.shape[1::-1], Image.Resampling.BILINEAR
    )
    values = np.clip(np.asarray(resized), 0, 1)
    stops = np.linspace(0, 1, len(_HEAT_STOPS))
    colors = np.stack([np.interp(values, stops, channel) for channel in _HEAT_STOPS.T], axis=-1)  # [y, x, 3]
    return (_HEAT_SHARE * colors + (1 - _HEAT_SHARE) * gray).astype(np.uint8)


def _enlargement(size_yx: tuple[int, ...]) -> int:
    return max(1, math.ceil(LEAST_SIDE / max(size_yx)))


def _enlarge(image: ImageArray, factor: int) -> ImageArray:
    if factor == 1:
        return image
    size_xy = (image.shape[1] * factor, image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size_xy, Image.Resampling.BICUBIC))


def _draw_outline(image: ImageArray, mask: Bool, *, thickness: int) -> None:
    """Draw a bright line around the mask and a dark one around that: one of them shows on any image.

    Both lie outside the mask, so that a small object stays visible; where the mask ends with the image, the
    bright line is inside.
    """
    reach = thickness + max(1, thickness // 2)
    rows, columns = (_reach_of(np.any(mask, axis=axis), reach) for axis in (1, 0))
    part, view = mask[rows, columns], image[rows, columns]
    line = _grow(part, thickness)
    view[_grow(line, reach - thickness) & ~part] = _CASING
    view[line & ~part] = _LINE
    frame = np.ones_like(mask)
    frame[thickness:-thickness, thickness:-thickness] = False
    image[frame & mask] = _LINE


def _reach_of(used: Bool, reach: int) -> slice:
    """Return the range of True in [n], `reach` longer at both ends."""
    first, last = np.flatnonzero(used)[[0, -1]]
    return slice(max(0, int(first) - reach), int(last) + 1 + reach)


def _grow(mask: Bool, distance: int) -> Bool:
    """Return the mask with all pixels within `distance` px, in an octagon."""
    for step in range(distance):
        framed = np.pad(mask, 1)
        grown = framed[:-2, 1:-1] | framed[2:, 1:-1] | framed[1:-1, :-2] | framed[1:-1, 2:] | mask
        if step % 2:  # diagonals in every other step
            grown |= framed[:-2, :-2] | framed[2:, 2:] | framed[:-2, 2:] | framed[2:, :-2]
        mask = grown
    return mask


def _add_label(image: ImageArray, caption: str, note: str) -> ImageArray:
    """Put the caption, and the note in smaller letters, on a dark strip below the image."""
    height, width = image.shape[:2]
    size = max(14, round(max(height, width) / 32))
    margin = size // 2
    rows = []
    for text, letters, color in ((caption, size, _CAPTION_COLOR), (note, size * 3 // 4, _NOTE_COLOR)):
        font = ImageFont.load_default(letters)
        lines = _wrap(text, font, width - 2 * margin) if text else []
        rows += [(line, font, round(letters * 1.35), color) for line in lines]
    strip = sum(row_height for _, _, row_height, _ in rows) + margin
    canvas = Image.new("RGB", (width, height + strip), _STRIP_COLOR)
    canvas.paste(Image.fromarray(image), (0, 0))
    draw, top = ImageDraw.Draw(canvas), height + margin // 2
    for line, font, row_height, color in rows:
        draw.text((margin, top), line, font=font, fill=color)
        top += row_height
    return np.asarray(canvas)


def _wrap(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
