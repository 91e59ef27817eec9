"""What people read of an audit and of a bisection; see `tables`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.cli.tables import _group, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.calibration.audit import AuditReport
    from refdiff.calibration.bisect import BisectReport
    from refdiff.calibration.graph_audit import GraphAudit
    from refdiff.calibration.output_tolerance import Outcome


def of_audit(report: AuditReport, written: Path | None) -> RenderableType:
    """One row per graph, then every rule that is proposed and everything that no rule mends."""
    head = ("=graph", ">runs", ">tensors", ">largest magnitude", ">room", ">covered by rule", ">proposed")
    table = _table(*head, ">error", "=")
    for each in report.graphs:
        table.add_row(*_row(each))
    lines = [f"{report.bundle}   {report.model}, {report.half}"]
    lines += [
        f"{each.graph}: {rule.because}: {', '.join(rule.nodes)}"
        for each in report.graphs
        for rule in each.proposed
    ]
    lines += [f"NOT MENDED: {line}" for line in report.complaints]
    lines.append("nothing was written" if written is None else f"recipe: {written}")
    return _group(table, *lines)


def _row(audit: GraphAudit) -> tuple[str, ...]:
    covered = sum(each.covered for each in audit.findings)
    proposed = len(audit.findings) - covered
    error = max((each.error for each in audit.deviations), default=None)
    return (
        audit.graph,
        str(audit.runs),
        str(len(audit.tensors)),
        f"{audit.nearest.largest:.4g}",
        f"{audit.room:.1f}x",
        str(covered),
        str(proposed),
        "–" if error is None else f"{error:.1e}",
        "FAILED" if audit.complaints else "ok",
    )


def of_bisection(report: BisectReport, written: Path | None) -> RenderableType:
    """The nodes, and both ends of the search."""
    table = _table("", "", header=False)
    table.add_row("graph", f"{report.graph}, {report.precision}, {report.runs} runs each")
    allowed = f"allowed {report.error_at_most:g}, correlation {report.correlation_at_least:g} or more"
    table.add_row("tolerance", allowed)
    if report.broken is None:
        return _group(table, f"{report.graph} is inside its tolerance: nothing to find, nothing was written")
    table.add_row("as it was", _outcome(report.broken))
    if report.first is not None:
        first = report.first
        table.add_row("goes wrong first", f"{first.tensor}, made by {first.node} ({first.operator})")
    if report.mended is not None:
        table.add_row("mended", _outcome(report.mended))
    smallest = "none of them can be left out" if report.minimal else "the trials ran out"
    table.add_row("trials", f"{report.trials}; {smallest}")
    table.add_row(f"kept in {report.kept_in}", "\n".join(report.nodes))
    return _group(table, f"recipe: {written}")


def _outcome(outcome: Outcome) -> str:
    return f"{outcome.output}: error {outcome.error:.2g} of its range, correlation {outcome.correlation:.6f}"
