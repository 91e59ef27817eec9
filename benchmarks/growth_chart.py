"""Draw the growth of time and memory: `python -m benchmarks.growth_chart` writes docs/images/growth.png.

In: results/growth.json. One column per series of the miniature: processor time on top, peak memory below.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.growth_points import SERIES
from benchmarks.records import RESULTS

RECORD = RESULTS / "growth.json"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "growth.png"
TITLES = {
    "phrases": "phrases per picture",
    "candidates": "candidates kept",
    "size": "picture",
    "grid": "SAM's grid, points per side",
}
_PAGE, _INK, _PALE, _GRID = (250, 250, 251), (28, 29, 34), (110, 114, 126), (226, 228, 233)
_COLOURS = {"official": (42, 100, 180), "edge": (205, 100, 25)}
_CELL_XY, _PLOT_XY, _MARGIN, _HEAD = (380, 270), (290, 200), 24, 64  # px
_LEFT, _INSET = 66, 16  # px, of the plot within its cell, and of the outer points within the plot


def main() -> None:
    """Draw what the record holds of the miniature."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    entries = {name.rsplit(" ", 1)[1]: entry for name, entry in record.items() if name.startswith("mini ")}
    draw_growth({series: entries[series] for series in SERIES if series in entries}).save(
        PICTURE, optimize=True
    )
    print(PICTURE.name)  # noqa: T201 - what a script is for


def draw_growth(entries: Mapping[str, dict[str, Any]]) -> Image.Image:
    """Draw one column of two plots per series; axes are logarithmic, except memory's, which starts at 0."""
    width, height = (
        2 * _MARGIN + len(entries) * _CELL_XY[0],
        2 * _MARGIN + _HEAD + 2 * _CELL_XY[1],
    )
    page = Image.new("RGB", (width, height), _PAGE)
    draw = ImageDraw.Draw(page)
    _legend(draw, entries)
    for column, (series, entry) in enumerate(entries.items()):
        left, top = _MARGIN + column * _CELL_XY[0] + _LEFT, _MARGIN + _HEAD
        _plot(draw, (left, top), entry["curves"], "cpu_seconds")
        _plot(draw, (left, top + _CELL_XY[1]), entry["curves"], "peak_rss_bytes")
        _text(draw, (left + _PLOT_XY[0] / 2, top + _CELL_XY[1] + _PLOT_XY[1] + 34), TITLES[series], "mm")
    _text(draw, (_MARGIN, _MARGIN + _HEAD - 22), "processor seconds", "lm")
    _text(draw, (_MARGIN, _MARGIN + _HEAD + _CELL_XY[1] - 22), "peak resident memory, MB", "lm")
    return page


def _legend(draw: ImageDraw.ImageDraw, entries: Mapping[str, dict[str, Any]]) -> None:
    x = float(_MARGIN)
    for name in dict.fromkeys(name for entry in entries.values() for name in entry["curves"]):
        y = _MARGIN + 10
        _line(draw, [(x, y), (x + 40, y)], name)
        _text(draw, (x + 50, y), name, "lm")
        x += 90 + draw.textlength(name, font=_font())


def _plot(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], curves: Mapping[str, dict[str, Any]], what: str
) -> None:
    rows = [row for curve in curves.values() for row in curve["points"]]
    right, bottom = corner[0] + _PLOT_XY[0], corner[1] + _PLOT_XY[1]
    labels = {row["value"]: row["label"] for row in rows}
    ticks = y_ticks([_cost(row, what) for row in rows], logarithmic=what == "cpu_seconds")

    def x_of(value: float) -> float:
        low, high = math.log(min(labels)), math.log(max(labels))
        share = (math.log(value) - low) / ((high - low) or 1.0)
        return corner[0] + _INSET + share * (_PLOT_XY[0] - 2 * _INSET)

    def y_of(value: float) -> float:
        scale = math.log if what == "cpu_seconds" else float
        share = (scale(value) - scale(ticks[0])) / (scale(ticks[-1]) - scale(ticks[0]))
        return bottom - share * _PLOT_XY[1]

    for tick in ticks:
        draw.line([(corner[0], y_of(tick)), (right, y_of(tick))], fill=_GRID)
        _text(draw, (corner[0] - 8, y_of(tick)), f"{tick:g}", "rm", _PALE)
    for value, label in labels.items():
        _text(draw, (x_of(value), bottom + 14), label, "mm", _PALE)
    for name, curve in curves.items():
        places = [(x_of(row["value"]), y_of(_cost(row, what))) for row in curve["points"]]
        _line(draw, places, name)
        for row, (x, y) in zip(curve["points"], places, strict=True):
            if what == "cpu_seconds":  # from the least to the most
                draw.line([(x, y_of(row[what]["least"])), (x, y_of(row[what]["most"]))], fill=_colour(name))
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_colour(name))


def y_ticks(values: Sequence[float], *, logarithmic: bool) -> list[float]:
    """Round numbers that enclose the values: 1, 2, 5 of each decade, or four or five even steps from 0."""
    steps = [round(digit * 10.0**power, 6) for power in range(-6, 7) for digit in (1, 2, 5)]
    if logarithmic:
        first = max(number for number, step in enumerate(steps) if step <= 0.8 * min(values))
        last = min(number for number, step in enumerate(steps) if step >= 1.2 * max(values))
        return steps[first : last + 1]
    step = min(step for step in steps if 5 * step >= max(values))
    return [number * step for number in range(math.ceil(max(values) / step) + 1)]


def _cost(row: Mapping[str, Any], what: str) -> float:
    return float(row[what]["median"]) if what == "cpu_seconds" else row[what] / 1e6


def _line(draw: ImageDraw.ImageDraw, places: Sequence[tuple[float, float]], name: str) -> None:
    """Solid for a profile, dashed for a variant of one."""
    if "," not in name:
        draw.line(places, fill=_colour(name), width=3)
        return
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        dashes = max(1, round(math.hypot(x1 - x0, y1 - y0) / 12))
        for number in range(dashes):
            ends = [(number + share) / dashes for share in (0.0, 0.55)]
            draw.line([(x0 + e * (x1 - x0), y0 + e * (y1 - y0)) for e in ends], fill=_colour(name), width=3)


def _colour(name: str) -> tuple[int, int, int]:
    return _COLOURS[name.split(",")[0]]


def _font() -> Any:
    return ImageFont.load_default(17)


def _text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    anchor: str,
    fill: tuple[int, int, int] = _INK,
) -> None:
    draw.text(place, text, fill=fill, font=_font(), anchor=anchor)


if __name__ == "__main__":
    main()
