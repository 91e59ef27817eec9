"""Draw the chosen mask on the image, and the heatmap.

Image [y, x, 3] uint8 RGB in, image out. Small images are enlarged first, so that the label is legible.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refdiff.contracts.results import Segmentation
from refdiff.contracts.session import Bool, Float, ImageArray

LEAST_SIDE = 480
"""A longer side below this many px is enlarged by a whole factor."""

_TINT = np.array([255, 64, 160], dtype=np.float32)  # magenta: rare in photographs
_TINT_SHARE = 0.45
_LINE = (255, 255, 255)
_STRIP_COLOR, _CAPTION_COLOR, _NOTE_COLOR = (24, 24, 28), (255, 255, 255), (240, 190, 110)
_HEAT_STOPS = np.array(  # dark blue, violet, orange, light yellow: brightness rises all the way
    [[10, 8, 60], [110, 30, 130], [220, 80, 60], [250, 170, 40], [255, 250, 200]], dtype=np.float32
)
_HEAT_SHARE = 0.65


def overlay(image: ImageArray, result: Segmentation) -> ImageArray:
    """Return the image with the chosen mask tinted and outlined, and phrase, score and cautions below."""
    factor = _enlargement(image.shape[:2])
    large, mask = _enlarge(image, factor), result.mask.repeat(factor, axis=0).repeat(factor, axis=1)
    tinted = large.astype(np.float32)
    tinted[mask] += _TINT_SHARE * (_TINT - tinted[mask])
    tinted[~mask] *= 0.75 if mask.any() else 1.0  # the rest is darkened a little
    painted = tinted.astype(np.uint8)
    edge = _outline(mask, max(2, round(max(large.shape[:2]) / 320)))
    painted[edge] = _LINE
    return _add_label(painted, _caption(result), _short_cautions(result))


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


def _outline(mask: Bool, thickness: int) -> Bool:
    """Return the pixels of the mask that lie within `thickness` px of its border."""
    inner = mask
    for _ in range(thickness):
        framed = np.pad(inner, 1)
        inner = inner & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inner


def _caption(result: Segmentation) -> str:
    if result.index is None:
        return f"{result.phrase}: no mask, {result.reason}"
    return f"{result.phrase} (best candidate, score {result.score:.3f})"


def _short_cautions(result: Segmentation) -> str:
    """Return the statements of the cautions without their details."""
    return ". ".join(caution.split(";")[0] for caution in result.cautions)


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
