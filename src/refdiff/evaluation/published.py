"""The paper's benchmark rows next to our figures, and the effect of the released evaluation's oddities.

`published_rows` takes reports, one for each mode, and returns `PublishedRow`s in the order of
`published.json`, and the rows that fail.

`audit_release` takes the oddities each alone (METHOD §9; `--audit release`). The release reuses an image's
features for later sentences, so that all of them get the first one's answer; it reads images as BGR and
passes them as RGB; and its "mIoU" weights sentences by area. refdiff never does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from refdiff.accuracy.metrics import Interval
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, Step, silent
from refdiff.contracts.session import ImageArray
from refdiff.data.sample import Dataset, Sample
from refdiff.evaluation.records import SentenceRecord, records_of
from refdiff.evaluation.summary import Summary, summarize
from refdiff.loading import open_backend, segmenter_of
from refdiff.reports.table import Cell, Column, Table, numeric
from refdiff.runtime.pipeline import Segmenter

TOLERANCE_POINTS = 1.0
"""Difference that is accepted beyond the interval: unseeded draws of the release, versions, decoders."""

_METRICS = {"oiou": "oIoU (= cIoU)", "miou": "mIoU"}


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of the table; values in percent."""

    subset: str
    mode: str
    metric: str
    """"oiou" or "miou"."""
    published: float | None
    ours: float | None
    interval: Interval | None
    """95 %, by bootstrap over images."""
    other_selector: float | None
    """Ours with the other selector of mode `gen` (METHOD §8); None in other modes."""
    partial: bool
    """Ours is about a part of the subset: no verdict."""
    variant: str

    @property
    def difference(self) -> float | None:
        """Ours minus published, in points."""
        return None if self.ours is None or self.published is None else self.ours - self.published

    @property
    def reproduced(self) -> bool | None:
        """Whether ours agrees with the published value; None without a comparison.

        `edge` is no reproduction: it only must not be worse.
        """
        if self.published is None or self.interval is None or self.partial:
            return None
        low, high = self.interval
        too_low = self.published > high + TOLERANCE_POINTS
        too_high = self.published < low - TOLERANCE_POINTS and self.variant != "edge"
        return not (too_low or too_high)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "subset": self.subset,
            "mode": self.mode,
            "metric": self.metric,
            "published": self.published,
            "ours": self.ours,
            "interval_95": None if self.interval is None else list(self.interval),
            "difference": self.difference,
            "other_selector": self.other_selector,
            "partial": self.partial,
            "reproduced": self.reproduced,
        }


def published_rows(
    summaries: Mapping[str, Summary],
    *,
    mode: str,
    variant: str,
    partial: Collection[str] = (),
    other_selector: Mapping[str, Summary] = MappingProxyType({}),
) -> tuple[PublishedRow, ...]:
    """Return all rows; those of other modes and of subsets that were not evaluated have no value of ours.

    Args:
        summaries: subset -> metrics.
        mode: of the evaluation.
        variant: of the evaluation.
        partial: subsets that were not evaluated whole.
        other_selector: as `summaries`, with the other selector of mode `gen`.
    """
    rows = []
    for entry in _document()["rows"]:
        summary = summaries.get(entry["subset"]) if entry["mode"] == mode else None
        other = other_selector.get(entry["subset"]) if summary is not None else None
        low, high = (0.0, 0.0) if summary is None else getattr(summary, f"{entry['metric']}_interval")
        rows.append(
            PublishedRow(
                subset=entry["subset"],
                mode=entry["mode"],
                metric=entry["metric"],
                published=entry["value"],
                ours=None if summary is None else 100 * getattr(summary, entry["metric"]),
                interval=None if summary is None else (100 * low, 100 * high),
                other_selector=None if other is None else 100 * getattr(other, entry["metric"]),
                partial=entry["subset"] in partial,
                variant=variant,
            )
        )
    return tuple(rows)


def published_table(rows: Collection[PublishedRow]) -> Table:
    """Build the table of `--table published`."""
    others = any(row.other_selector is not None for row in rows)
    return Table(
        title="Published results of Ref-Diff and ours, in percent",
        columns=(
            *(Column("data set", wrap=True), Column("mode"), Column("metric", optional=2)),
            *(*numeric("published", "ours"), *numeric("95 %", optional=1), *numeric("difference")),
            *(numeric("other selector") if others else ()),
            Column(),
        ),
        rows=[
            (
                row.subset,
                row.mode,
                _METRICS[row.metric],
                "not published" if row.published is None else f"{row.published:.2f}",
                "not measured" if row.ours is None else f"{row.ours:.2f}",
                "" if row.interval is None else f"{row.interval[0]:.2f}-{row.interval[1]:.2f}",
                "" if row.difference is None else f"{row.difference:+.2f}",
                *(("" if row.other_selector is None else f"{row.other_selector:.2f}",) if others else ()),
                _verdict(row),
            )
            for row in rows
        ],
        footnotes=(
            f"published: {_document()['sources']['paper']}",
            f"FAILED: the published value is more than {TOLERANCE_POINTS:g} point outside the interval",
            *((_OTHER[next(iter(rows)).variant == "edge"],) if others else ()),
        ),
    )


_OTHER = (
    "other selector: the level set of the largest between-class variance, in place of the largest contrast",
    "other selector: the level set of the largest contrast, in place of the largest between-class variance",
)
"""Of the variants of the paper's rule, and of `edge` (METHOD §8)."""


def _verdict(row: PublishedRow) -> Cell:
    if row.reproduced is None:
        return Cell("partial" if row.partial and row.ours is not None else "")
    return Cell("ok", "good") if row.reproduced else Cell("FAILED", "bad")


def _document() -> dict[str, Any]:
    text = resources.files("refdiff.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


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
