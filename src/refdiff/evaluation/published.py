"""The paper's benchmark rows, with our figures next to them.

In: reports, one for each mode. Out: `PublishedRow`s in the order of `published.json`, and the rows that fail.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from refdiff.accuracy.metrics import Interval
from refdiff.evaluation.summary import Summary
from refdiff.reports import Cell, Column, Table, numeric

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
