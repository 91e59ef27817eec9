"""The tables of `eval`."""

from __future__ import annotations

from refdiff.evaluation.evaluate import EvaluationReport
from refdiff.evaluation.summary import Summary
from refdiff.reports import Column, Section, Table, numeric


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
