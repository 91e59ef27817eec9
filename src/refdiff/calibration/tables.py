"""Tables of the results of an audit, a bisection, a calibration and a sensitivity measurement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.reports import Cell, Column, Table, facts_table, numeric, outcome, size_text

if TYPE_CHECKING:
    from refdiff.calibration.audit import AuditReport
    from refdiff.calibration.bisect import BisectReport
    from refdiff.calibration.calibrate import CalibrationReport
    from refdiff.calibration.graph_audit import GraphAudit
    from refdiff.calibration.output_tolerance import Outcome
    from refdiff.calibration.sensitivity import SensitivityReport


def audit_table(report: AuditReport, written: Path | None) -> Table:
    """Lay out one row per graph, then the rules that are proposed and the problems that no rule fixes.

    Args:
        report: of `audit`.
        written: the recipe's file; None where none was written.
    """
    columns = (
        Column("graph"),
        *(*numeric("runs", "tensors", optional=2), *numeric("largest magnitude", "room")),
        *(*numeric("covered by rule", optional=1), *numeric("proposed", "error")),
        Column(),
    )
    rules = [
        f"{each.graph}: {rule.because}: {', '.join(rule.nodes)}"
        for each in report.graphs
        for rule in each.proposed
    ]
    complaints = [f"NOT FIXED: {line}" for line in report.complaints]
    recipe = "nothing was written" if written is None else f"recipe: {written}"
    return Table(
        columns=columns,
        rows=[_audit_row(each) for each in report.graphs],
        footnotes=(f"{report.bundle}   {report.model}, {report.half}", *rules, *complaints, recipe),
    )


def _audit_row(audit: GraphAudit) -> tuple[Cell | str, ...]:
    covered = sum(each.covered for each in audit.findings)
    error = max((each.error for each in audit.deviations), default=None)
    return (
        audit.graph,
        str(audit.runs),
        str(len(audit.tensors)),
        f"{audit.nearest.largest:.4g}",
        f"{audit.room:.1f}x",
        str(covered),
        str(len(audit.findings) - covered),
        "–" if error is None else f"{error:.1e}",
        outcome(passed=not audit.complaints),
    )


def bisection_table(report: BisectReport, written: Path | None) -> Table:
    """Lay out the nodes a bisection found and both ends of its search.

    Args:
        report: of `bisect`.
        written: the recipe's file; None where none was written.
    """
    allowed = f"allowed {report.error_at_most:g}, correlation {report.correlation_at_least:g} or more"
    facts = [
        ("graph", f"{report.graph}, {report.precision}, {report.runs} runs each"),
        ("tolerance", allowed),
    ]
    if report.broken is None:
        inside = f"{report.graph} is inside its tolerance: nothing to find, nothing was written"
        return facts_table(facts, footnotes=(inside,))
    facts.append(("before", _outcome(report.broken)))
    if report.first is not None:
        first = report.first
        facts.append(("goes wrong first", f"{first.tensor}, made by {first.node} ({first.operator})"))
    if report.fixed is not None:
        facts.append(("after", _outcome(report.fixed)))
    smallest = "none of them can be left out" if report.minimal else "the trials ran out"
    facts.append(("trials", f"{report.trials}; {smallest}"))
    facts.append((f"kept in {report.kept_in}", "\n".join(report.nodes)))
    return facts_table(facts, footnotes=(f"recipe: {written}",))


def _outcome(outcome: Outcome) -> str:
    return f"{outcome.output}: error {outcome.error:.2g} of its range, correlation {outcome.correlation:.6f}"


def calibration_table(report: CalibrationReport) -> Table:
    """Lay out one row per graph, and how many questions were recorded where."""
    earlier = f", {report.resumed} of them recorded earlier" if report.resumed else ""
    images = "image" if report.pictures == 1 else "images"
    return Table(
        title=f"{report.bundle}   {report.model} on {report.backend}, "
        f"{', '.join(report.variants)}, {report.mode}",
        columns=(Column("graph"), *numeric("recorded runs")),
        rows=[(name, str(count)) for name, count in report.graphs.items()],
        footnotes=(
            f"{report.new + report.resumed} questions on {report.pictures} {images}{earlier}",
            f"{report.feeds}   {size_text(report.size_bytes)}, {report.seconds:.1f} s",
        ),
    )


def sensitivity_table(report: SensitivityReport) -> Table:
    """Lay out one row per block, the costliest first."""
    return Table(
        title=f"{report.type}, variant {report.variant}, {report.count} scenes, compared with {report.truth}",
        columns=(
            Column("graph"),
            Column("block", wrap=True),
            *numeric("nodes", optional=1),
            *numeric("mIoU", "cost, points"),
        ),
        rows=[
            (cost.graph, cost.block, str(len(cost.nodes)), f"{cost.miou:.4f}", f"{cost.cost_points:+.2f}")
            for cost in report.costs
        ],
        footnotes=(f"all in half precision: mIoU {report.half_miou:.4f}",),
    )
