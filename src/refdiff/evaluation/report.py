"""The report of an evaluation as one HTML page: tables, distributions, calibration, worst and best cases.

In: an `EvaluationReport` and its samples, which the images of the cases are read from. Out: a `Page`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage

from refdiff.accuracy.logistic import calibration_error
from refdiff.contracts.session import Bool, ImageArray
from refdiff.data.sample import Sample, true_mask
from refdiff.data.truth import decode_segmentation
from refdiff.evaluation.evaluate import EvaluationReport
from refdiff.evaluation.records import SentenceRecord
from refdiff.evaluation.summary import Summary
from refdiff.reports.page import Bar, Figure, Image, Page, Section
from refdiff.reports.table import Column, Table, numeric
from refdiff.runtime.image import png


def evaluation_section(report: EvaluationReport) -> Section:
    """Build the tables of a report: metrics by data set, and by class of phrase and size of object."""
    model = report.model
    heading = (
        f"{model.runtime}, {model.options.variant}, {model.options.mode}: {len(report.records)} samples, "
        f"{report.seconds:.0f} s"
    )
    groups = {"all": report.summary, **(report.by_subset if len(report.by_subset) > 1 else {})}
    tables = [_metrics_table(groups), _losses_table(groups)]
    if report.by_cue:
        tables.append(_metrics_table(report.by_cue, "with"))
    return Section(heading=heading, tables=tables)


def _metrics_table(groups: dict[str, Summary], prefix: str = "") -> Table:
    levels = tuple(next(iter(groups.values())).precision_at)
    return Table(
        columns=(
            *(Column("phrases", wrap=True), *numeric("count", "mIoU"), *numeric("95 %", optional=1)),
            *(*numeric("oIoU = cIoU"), *numeric("95 % ", optional=1)),
            *(*numeric(*(f"Pr@{level}" for level in levels), optional=2), *numeric("oracle")),
        ),
        rows=[
            (
                f"{prefix} {name}".strip(),
                str(part.count),
                f"{part.miou:.4f}",
                _interval(part.miou_interval),
                f"{part.oiou:.4f}",
                _interval(part.oiou_interval),
                *(f"{part.precision_at[level]:.3f}" for level in levels),
                f"{part.oracle_miou:.4f}",
            )
            for name, part in groups.items()
        ],
    )


def _losses_table(groups: dict[str, Summary]) -> Table:
    absent = any(part.absent for part in groups.values())
    return Table(
        columns=(
            Column("lost accuracy", wrap=True),
            *numeric("proposals", "ranking", "edges", "no answer"),
            *(numeric("absent", "gIoU", "N-acc", "T-acc", optional=1) if absent else ()),
        ),
        rows=[
            (
                name,
                f"{part.lost_to_proposals:.4f}",
                f"{part.lost_to_ranking:.4f}",
                f"{part.lost_to_edges:.4f}",
                str(part.unmatched),
                *(
                    (
                        str(part.absent),
                        f"{part.giou:.4f}",
                        *map(_share, (part.no_target_accuracy, part.target_accuracy)),
                    )
                    if absent
                    else ()
                ),
            )
            for name, part in groups.items()
        ],
        footnotes=("proposals + ranking + edges + mIoU = 1; intervals by bootstrap over images",),
    )


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}-{interval[1]:.3f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


CASES = 8
"""Worst cases, and best cases, that are shown."""

_BINS = 10
_SIDE_PX = 320
"""Longest side of an image on the page."""

_DIMMED = 0.25
_TRUE_COLOR, _ANSWER_COLOR = (60, 200, 90), (255, 90, 90)


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """The sentences whose confidence lies in one tenth of the range."""

    low: float
    count: int
    mean_confidence: float
    right: float
    """Share of the sentences whose IoU is at least 0.5."""


def calibration_bins(records: Iterable[SentenceRecord]) -> list[CalibrationBin]:
    """Return the bins that hold sentences; none if no sentence has a confidence."""
    known = [(each.confidence, is_right(each)) for each in records if each.confidence is not None]
    bins = []
    for index in range(_BINS):
        inside = [pair for pair in known if min(int(pair[0] * _BINS), _BINS - 1) == index]
        if inside:
            bins.append(
                CalibrationBin(
                    low=index / _BINS,
                    count=len(inside),
                    mean_confidence=float(np.mean([pair[0] for pair in inside])),
                    right=float(np.mean([pair[1] for pair in inside])),
                )
            )
    return bins


def is_right(record: SentenceRecord) -> bool:
    """Return whether the answer counts as right: an IoU of at least 0.5 with what was meant."""
    return record.has_target and record.iou >= 0.5


def evaluation_page(report: EvaluationReport, samples: Iterable[Sample]) -> Page:
    """Build the page.

    Args:
        report: from `evaluate`.
        samples: those that were evaluated; their images are read again for the cases.

    Raises:
        InputError: an image or a true mask cannot be read.
    """
    targets = [each for each in report.records if each.has_target]
    by_id = {sample.id: sample for sample in samples}
    ordered = sorted(targets, key=lambda each: (each.iou, -(each.score or 0)))
    worst = [each for each in ordered if each.matched][:CASES]
    best = [each for each in ordered[::-1] if each not in worst][:CASES]
    sections = [evaluation_section(report), _distributions(report)]
    if any(each.confidence is not None for each in report.records):
        sections.append(_calibration(report.records))
    for heading, cases in (("Worst cases", worst), ("Best cases", best)):
        if cases:
            explanation = "From the left: the image, the true mask (green), the answer (red)."
            figures = [_figure(each, by_id[each.id]) for each in cases]
            sections.append(Section(heading=heading, explanation=explanation, figures=figures))
    return Page(
        title=f"Evaluation of {report.model.bundle}",
        passed=None,
        verdict=f"mIoU {report.summary.miou:.4f}, oIoU {report.summary.oiou:.4f} on {report.summary.count} "
        f"sentences and {report.summary.images} images.",
        sections=sections,
    )


def _distributions(report: EvaluationReport) -> Section:
    groups = report.by_subset or {"all": report.summary}
    bars, lines = [], []
    for name in groups:
        ious = np.array(
            [each.iou for each in report.records if each.has_target and name in (each.subset, "all")]
        )
        counts, edges = np.histogram(ious, bins=_BINS // 2, range=(0, 1))
        if len(ious):
            lines.append(f"{name}: median IoU {np.median(ious):.3f}")
            shares = [
                (f"{name}, IoU {low:.1f}-{low + 0.2:.1f}", int(count) / len(ious))
                for low, count in zip(edges, counts, strict=False)
            ]
            bars.append(Bar(shares=shares))
    return Section(heading="Distribution of the IoU", lines=lines, bars=bars)


def _calibration(records: Sequence[SentenceRecord]) -> Section:
    known = [each for each in records if each.confidence is not None]
    error = calibration_error(
        np.array([each.confidence for each in known]), np.array([is_right(each) for each in known])
    )
    table = Table(
        columns=(Column("confidence"), *numeric("sentences", "mean confidence", "share right")),
        rows=[
            (
                f"{each.low:.1f}-{each.low + 1 / _BINS:.1f}",
                str(each.count),
                f"{each.mean_confidence:.3f}",
                f"{each.right:.3f}",
            )
            for each in calibration_bins(records)
        ],
        footnotes=(f"expected calibration error {error:.3f}; right: IoU of at least 0.5",),
    )
    return Section(heading="Calibration", tables=[table])


def _figure(record: SentenceRecord, sample: Sample) -> Figure:
    pixels = sample.read()
    answer = decode_segmentation(record.rle, (pixels.shape[0], pixels.shape[1]))
    score = "no mask" if record.score is None else f"score {record.score:.3f}"
    confidence = "" if record.confidence is None else f", confidence {record.confidence:.2f}"
    return Figure(
        title=record.phrase,
        line=f"{record.id}: IoU {record.iou:.3f}, oracle {record.oracle_iou:.3f}, {score}{confidence}",
        images=[
            Image(png=png(_small(pixels)), caption="image"),
            Image(png=png(_small(_painted(pixels, true_mask(sample), _TRUE_COLOR))), caption="true mask"),
            Image(png=png(_small(_painted(pixels, answer, _ANSWER_COLOR))), caption="answer"),
        ],
    )


def _painted(image: ImageArray, mask: Bool, color: tuple[int, int, int]) -> ImageArray:
    """Dim everything outside of the mask, and draw its border."""
    dimmed = (image * np.where(mask, 1, _DIMMED)[..., None]).astype(np.uint8)
    framed = np.pad(mask, 1)
    inner = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    dimmed[mask & ~inner] = color
    return dimmed


def _small(image: ImageArray) -> ImageArray:
    pillow = PillowImage.fromarray(image)
    pillow.thumbnail((_SIDE_PX, _SIDE_PX))
    return np.asarray(pillow)
