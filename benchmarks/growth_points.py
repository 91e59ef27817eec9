"""Points of the growth measurement: curves in four series, and the images and phrases they use.

A point is plain data, so that it can be passed to a child process.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.contracts.options import Options, options_for
from refdiff.contracts.spec import ModelSpec
from refdiff.miniature.scenes import render_scene
from refdiff.miniature.scenes.layout import COLOURS
from refdiff.miniature.scenes.shapes import KINDS

SERIES = ("phrases", "candidates", "size", "grid")
VALUES = {"phrases": (1, 4, 16, 64), "candidates": (10, 50, 200), "grid": (8, 16, 32)}
SIZES_XY = {"480p": (854, 480), "720p": (1280, 720), "1080p": (1920, 1080), "4K": (3840, 2160)}
TILE_XY = (192, 112)
"""Size of one rendered scene; the image is two by two of them."""
HELD_OUT = 1_000_000
"""First seed of the scenes nothing was trained on."""
SOFT_LONG_SIDE = 512
"""Longest side in px of what the masked attention sees in the series of sizes, the same in both profiles.

The release shows it the image's own resolution, which the runtime refuses where it has too many patches: in
the miniature from 720p on.
"""
ALL_MASKS = {"points_per_side": 16, "pred_iou_threshold": 0.0, "stability_threshold": 0.0, "nms_iou": 0.9}
"""Thresholds off: SAM's masks, good or bad, so that there are enough of them to keep a given number."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measurement: image, phrases and options."""

    curve: str
    """Name of the line it lies on."""
    value: int | float
    """Position on the axis."""
    label: str
    variant: str
    size_xy: tuple[int, int]
    """Size of the image in px."""
    phrases: int = 1
    sided: bool = False
    """Two of three phrases name a side."""
    proposals: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the profile's proposal options."""
    crops: Mapping[str, Any] = field(default_factory=dict)
    """Changes of its crop options."""

    def options(self, spec: ModelSpec) -> Options:
        """Return the variant with this point's changes."""
        base = options_for(spec, variant=self.variant)
        return dataclasses.replace(
            base,
            proposals=dataclasses.replace(base.proposals, **self.proposals),
            crops=dataclasses.replace(base.crops, **self.crops),
        )


def points(
    series: str,
    variants: Sequence[str],
    *,
    counts: Sequence[int],
    candidates: Sequence[int],
    thresholds: Mapping[str, Any],
) -> list[Point]:
    """Return the points of a series, curve by curve.

    Args:
        series: one of `SERIES`.
        variants: one curve each, of official and edge.
        counts: of phrases, for that series.
        candidates: numbers of candidates, for that series.
        thresholds: SAM's, for random weights; none leaves the profiles' own.
    """
    size_xy = SIZES_XY["720p"] if thresholds else (2 * TILE_XY[0], 2 * TILE_XY[1])
    if series == "phrases":
        made = [
            Point(curve=curve, value=count, label=str(count), variant=variant, size_xy=size_xy)
            for variant in variants
            for curve in ((variant,) if thresholds else (variant, f"{variant}, sides named"))
            for count in counts
        ]
        return [
            dataclasses.replace(
                each, phrases=int(each.value), sided="sides" in each.curve, proposals=dict(thresholds)
            )
            for each in made
        ]
    if series == "size":
        return [
            Point(
                curve=variant,
                value=round(x * y / 1e6, 3),
                label=label,
                variant=variant,
                size_xy=(x, y),
                crops={"soft_long_side": SOFT_LONG_SIDE},
            )
            for variant in variants
            for label, (x, y) in SIZES_XY.items()
        ]
    return [
        Point(
            curve=variant,
            value=value,
            label=str(value),
            variant=variant,
            size_xy=size_xy,
            proposals=(
                {**ALL_MASKS, "keep_largest": value, "min_area_px": 0, "min_area_share": 0.0}
                if series == "candidates"
                else {"points_per_side": value}
            ),
        )
        for variant in variants
        for value in (candidates if series == "candidates" else VALUES[series])
    ]


def picture(size_xy: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the same four rendered scenes, two by two, at any size: [y, x, 3]."""
    page = Image.new("RGB", (2 * TILE_XY[0], 2 * TILE_XY[1]))
    for number in range(4):
        scene = Image.fromarray(render_scene(HELD_OUT + number).image)
        place = (number % 2 * TILE_XY[0], number // 2 * TILE_XY[1])
        page.paste(scene.resize(TILE_XY, Image.Resampling.LANCZOS), place)
    return np.asarray(page.resize(size_xy, Image.Resampling.LANCZOS))


def phrases(count: int, *, sided: bool) -> list[str]:
    """Different phrases in the miniature's words.

    Args:
        count: at most three for each colour of each kind of thing.
        sided: every second and third of three names a side. Naming a side for the first time costs the crops
            under that side's ramp, so without sides the growth is the phrases' own.
    """
    words = itertools.product(("", "small ", "large "), COLOURS, KINDS)
    made = [f"the {size}{colour} {kind}" for size, colour, kind in words]
    if count > len(made):
        raise SystemExit(f"got {count} phrases, expected at most {len(made)}")
    sides = ("", " on the left", " on the right")
    return [text + (sides[number % 3] if sided else "") for number, text in enumerate(made[:count])]
