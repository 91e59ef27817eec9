"""The demo's contact sheet: image, attention map and mask of each scene, side by side.

In: images [y, x, 3] uint8 RGB with their results. Out: one image. Every panel is scaled to a box of one size,
and keeps its aspect ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refdiff.contracts.results import Segmentation
from refdiff.runtime.overlay import heat_overlay, overlay

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

PANELS = ("picture", "attention", "answer")

_COLUMNS = 2
_PANEL_WH = (256, 208)
_GAP, _MARGIN = 8, 28
_HEADING, _CAPTION = 40, 24  # heights in px
_PAGE: Colour = (246, 246, 248)
_CARD: Colour = (228, 229, 234)
_INK: Colour = (28, 29, 34)
_PALE: Colour = (104, 108, 120)
_GOOD: Colour = (20, 120, 60)
_POOR: Colour = (178, 44, 40)
_GOOD_FROM = 0.5  # IoU; the usual threshold of a hit


@dataclass(frozen=True, kw_only=True)
class SheetEntry:
    """A scene of the sheet."""

    image: Picture
    result: Segmentation
    iou: float
    """IoU of the predicted and the true mask, 0..1."""


def contact_sheet(entries: Sequence[SheetEntry]) -> Picture:
    """Lay the entries out in columns, row by row."""
    cell_w = len(PANELS) * _PANEL_WH[0] + (len(PANELS) - 1) * _GAP
    cell_h = _HEADING + _PANEL_WH[1] + _CAPTION
    columns = min(_COLUMNS, max(len(entries), 1))
    rows = -(-len(entries) // columns)
    width, height = (n * (size + _MARGIN) + _MARGIN for n, size in ((columns, cell_w), (rows, cell_h)))
    page = Image.new("RGB", (width, height), _PAGE)
    for number, entry in enumerate(entries):
        row, column = divmod(number, columns)
        corner = (_MARGIN + column * (cell_w + _MARGIN), _MARGIN + row * (cell_h + _MARGIN))
        _draw_entry(page, corner, cell_w, entry)
    return np.asarray(page)


def _draw_entry(page: Image.Image, corner: tuple[int, int], width: int, entry: SheetEntry) -> None:
    """Draw the phrase and its IoU, and below them the three panels with their captions."""
    left, top = corner
    draw = ImageDraw.Draw(page)
    verdict = "no match" if entry.result.index is None else f"IoU {entry.iou:.2f}"
    font = _font(24)
    ink = _GOOD if entry.iou >= _GOOD_FROM else _POOR
    verdict_w = font.getlength(verdict)
    draw.text((left + width - verdict_w, top + 4), verdict, font=font, fill=ink)
    phrase = _shorten_to(f"“{entry.result.phrase}”", font, width - verdict_w - 2 * _GAP)
    draw.text((left, top + 4), phrase, font=font, fill=_INK)
    for number, (name, panel) in enumerate(zip(PANELS, _panels(entry), strict=True)):
        x = left + number * (_PANEL_WH[0] + _GAP)
        page.paste(_center_in_box(panel), (x, top + _HEADING))
        caption = (x + _PANEL_WH[0] / 2, top + _HEADING + _PANEL_WH[1] + 4)
        draw.text(caption, name, font=_font(15), fill=_PALE, anchor="ma")


def _panels(entry: SheetEntry) -> tuple[Picture, Picture | None, Picture]:
    result = entry.result
    heat = None if result.heat is None else heat_overlay(entry.image, result.heat)
    answer = overlay(entry.image, result)
    # Below the overlay is a strip with phrase and score, which the sheet shows in its heading instead.
    height = round(entry.image.shape[0] * answer.shape[1] / entry.image.shape[1])
    return entry.image, heat, answer[:height]


def _center_in_box(panel: Picture | None) -> Image.Image:
    """Center a panel in a box of the common size; the box is empty if the mode has no such panel."""
    box_w, box_h = _PANEL_WH
    box = Image.new("RGB", _PANEL_WH, _CARD)
    if panel is None:
        ImageDraw.Draw(box).text((box_w / 2, box_h / 2), "not in this mode", _PALE, _font(15), anchor="mm")
        return box
    height, width = panel.shape[:2]
    scale = min(box_w / width, box_h / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = Image.fromarray(panel).resize(size, Image.Resampling.LANCZOS)
    box.paste(scaled, ((box_w - size[0]) // 2, (box_h - size[1]) // 2))
    return box


def _shorten_to(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Shorten a text until it fits."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
