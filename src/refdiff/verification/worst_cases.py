"""Figures of the samples on which reference and bundle differ most: image, answers and attention maps."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from refdiff.reports.page import Figure, Image, Section
from refdiff.runtime.overlay import draw_answer, heat_overlay
from refdiff.runtime.segmentation import Segmentation
from refdiff.verification.task_agreement import ComparedSample

LONGEST_PX = 360
"""Longest side of an image on the page: four cases then take a megabyte or two."""

_COLORS = 256


def worst_cases_section(cases: Sequence[ComparedSample], precision: str) -> Section:
    """Lay out the samples on which reference and bundle differ most; on the page only.

    Args:
        cases: worst first.
        precision: of the bundle, for the captions.
    """
    same = all(case.agreement.mask_iou == 1 for case in cases)
    line = (
        "Reference and bundle give the same mask on every scene; below, where attention differs most."
        if same
        else "Least mask IoU first; where masks are the same, the largest difference in attention."
    )
    figures = [case_figure(case, precision) for case in cases]
    return Section(heading="Worst cases", lines=(line,), figures=figures)


def case_figure(case: ComparedSample, precision: str) -> Figure:
    """Draw a case: the image, both answers and both attention maps.

    Args:
        case: what was asked and answered.
        precision: of the bundle, for the captions.
    """
    image = case.sample.read()
    answers = (("reference", case.reference), (f"{precision} bundle", case.runtime))
    images = [Image(png=_png(image), caption="image")]
    images += [
        Image(png=_png(draw_answer(image, result.mask)), caption=f"{name}: {_score(result)}")
        for name, result in answers
    ]
    images += [
        Image(png=_png(heat_overlay(image, result.heat)), caption=f"{name}: attention")
        for name, result in answers
        if result.heat is not None
    ]
    return Figure(title=f"“{case.reference.phrase}”", line=_case_numbers(case), images=images)


def _case_numbers(case: ComparedSample) -> str:
    agreement = case.agreement
    facts = [
        f"{case.variant}, {case.sample.id}",
        f"mask IoU {agreement.mask_iou:.3f}",
        f"candidates found {agreement.candidate_recall:.0%}",
    ]
    if agreement.heat_correlation is not None:
        facts.append(f"attention correlates {agreement.heat_correlation:.5f}")
    if case.heat_difference is not None:
        facts.append(f"attention differs by {case.heat_difference:.3f} of 1 at most")
    return " · ".join(facts)


def _score(result: Segmentation) -> str:
    return "no mask" if result.index is None else f"score {result.score:.4f}"


def _png(pixels: NDArray[np.uint8]) -> bytes:
    image = PillowImage.fromarray(pixels)
    image.thumbnail((LONGEST_PX, LONGEST_PX), PillowImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(_COLORS).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
