"""What the oddities of the released evaluation do to its figures, each alone (METHOD §9; `--audit release`).

The release reuses an image's features for later sentences, so that all of them get the first one's answer; it
reads images as BGR and passes them as RGB; and its "mIoU" weights sentences by area. refdiff never does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, Step, silent
from refdiff.contracts.session import ImageArray
from refdiff.data.sample import Dataset, Sample
from refdiff.evaluation.records import SentenceRecord, records_of
from refdiff.evaluation.summary import Summary, summarize
from refdiff.loading import open_backend, segmenter_of
from refdiff.reports import Column, Table, numeric
from refdiff.runtime.pipeline import Segmenter

Answering = Callable[[Segmenter, ImageArray, Sequence[Sample]], "list[SentenceRecord]"]


def _as_is(segmenter: Segmenter, pixels: ImageArray, samples: Sequence[Sample]) -> list[SentenceRecord]:
    answers = segmenter.segment_each(pixels, [sample.phrase for sample in samples])
    return list(records_of(samples, answers))


def _first_sentence(
    segmenter: Segmenter, pixels: ImageArray, samples: Sequence[Sample]
) -> list[SentenceRecord]:
    answer = segmenter.segment(pixels, samples[0].phrase)
    return list(records_of(samples, [answer] * len(samples)))


def _bgr(segmenter: Segmenter, pixels: ImageArray, samples: Sequence[Sample]) -> list[SentenceRecord]:
    return _as_is(segmenter, pixels[..., ::-1].copy(), samples)


ODDITIES: dict[str, Answering] = {
    "as defined": _as_is,
    "the first sentence's answer for all of an image": _first_sentence,
    "BGR images": _bgr,
}
"""Name -> how an image is answered. The weighting by area is a column of each."""


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """The figures with one oddity."""

    oddity: str
    summary: Summary
    weighted_miou: float
    """The release's "mIoU": the mean of I/U weighted by the area of the true mask."""


def audit_release(
    bundle: Path | str,
    dataset: Dataset,
    *,
    options: RunOptions,
    backend: BackendOptions = DEFAULT_BACKEND,
    progress: Progress | None = None,
) -> tuple[AuditRow, ...]:
    """Evaluate a bundle with each oddity alone.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        dataset: as for `evaluate`.
        options: what is computed; the release is variant "official".
        backend: where and how the graphs run.
        progress: called for each image.

    Raises:
        RefdiffError: as for `evaluate`.
    """
    opened, report, done = find_bundle(bundle, expect=options.expect), progress or silent, 0
    check_trained(opened, allow_random_weights=options.allow_random_weights)
    records: dict[str, list[SentenceRecord]] = {name: [] for name in ODDITIES}
    with ExitStack() as stack:
        sessions = open_backend(opened, backend)
        pipeline = options.pipeline_options(opened.spec)
        segmenter = stack.enter_context(segmenter_of(opened, sessions, pipeline))
        for _, group in groupby(dataset, key=lambda sample: sample.picture or sample.id):
            samples = tuple(group)
            pixels = samples[0].read()
            for name, answering in ODDITIES.items():
                records[name] += answering(segmenter, pixels, samples)
            done += len(samples)
            report(Step(f"{done} of {len(dataset)} samples", done=done, total=len(dataset), unit="samples"))
    return tuple(
        AuditRow(oddity=name, summary=summarize(each), weighted_miou=_weighted_miou(each))
        for name, each in records.items()
    )


def audit_json(rows: Sequence[AuditRow]) -> dict[str, Any]:
    """Return a JSON-ready dictionary."""
    return {row.oddity: {**row.summary.to_json(), "miou_weighted_by_area": row.weighted_miou} for row in rows}


def audit_table(rows: Sequence[AuditRow]) -> Table:
    """Build the table of `--audit release`."""
    return Table(
        title="Oddities of the released evaluation, each alone",
        columns=(Column("oddity", wrap=True), *numeric("count", "mIoU", "oIoU = cIoU", "mIoU by area")),
        rows=[
            (
                row.oddity,
                str(row.summary.count),
                f"{row.summary.miou:.4f}",
                f"{row.summary.oiou:.4f}",
                f"{row.weighted_miou:.4f}",
            )
            for row in rows
        ],
    )


def _weighted_miou(records: Sequence[SentenceRecord]) -> float:
    area = sum(each.truth_px for each in records)
    return sum(each.iou * each.truth_px for each in records) / area if area else 0.0
