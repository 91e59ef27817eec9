"""The pictures of one case: the scene, then both answers and both attention maps, as small PNG files."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.accuracy.report import Figure, Picture
from refdiff.accuracy.worst_cases import Case
from refdiff.contracts.results import Segmentation
from refdiff.runtime.overlay import heat_overlay, overlay

LONGEST_PX = 360
"""Of a picture's sides: four cases stay within a megabyte or two."""

_COLOURS = 256


def figure_of(case: Case, precision: str) -> Figure:
    """The case, its answers side by side.

    Args:
        case: what was asked and answered.
        precision: of the bundle, for the captions.
    """
    ours = f"{precision} bundle"
    pictures = [Picture(png=_png(case.image), caption="scene")]
    for who, result in (("reference", case.reference), (ours, case.runtime)):
        pictures.append(Picture(png=_png(_answer(case.image, result)), caption=f"{who}: {_said(result)}"))
    for who, result in (("reference", case.reference), (ours, case.runtime)):
        if result.heat is not None:
            picture = heat_overlay(case.image, result.heat)
            pictures.append(Picture(png=_png(picture), caption=f"{who}: attention"))
    return Figure(title=f"“{case.reference.phrase}”", line=_numbers(case), pictures=tuple(pictures))


def _numbers(case: Case) -> str:
    agreement = case.agreement
    facts = [
        f"{case.profile}, scene {case.seed}",
        f"mask IoU {agreement.mask_iou:.3f}",
        f"candidates found {agreement.candidate_recall:.0%}",
    ]
    if agreement.heat_correlation is not None:
        facts.append(f"attention correlates {agreement.heat_correlation:.5f}")
    if case.heat_difference is not None:
        facts.append(f"attention differs by {case.heat_difference:.3f} of 1 at most")
    return " · ".join(facts)


def _said(result: Segmentation) -> str:
    return "no match" if result.index is None else f"score {result.score:.4f}"


def _answer(image: NDArray[np.uint8], result: Segmentation) -> NDArray[np.uint8]:
    """The overlay without the strip below it: the caption says what is on it."""
    painted = overlay(image, result)
    return painted[: round(image.shape[0] * painted.shape[1] / image.shape[1])]


def _png(picture: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(picture)
    image.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(_COLOURS).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
