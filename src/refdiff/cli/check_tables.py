"""What people read of a check; see `tables`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refdiff.cli.tables import _group, _table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from refdiff.accuracy.ladder import Ladder
    from refdiff.api import CheckReport
    from refdiff.contracts.closeness import Parity


def of_check(report: CheckReport) -> RenderableType:
    """The ladder, one row per output of each rung, then the task, one row per gate; the verdict last."""
    parts: list[RenderableType] = [_of_ladder(report.ladder)]
    if report.reference:
        parts.append(_of_task(report))
    return _group(*parts, *_lines(report))


def _of_ladder(ladder: Ladder) -> Table:
    with_feeds = any(step.feeds is not None for rung in ladder.rungs for step in rung.steps)
    head = ("=rung", "=output", ">from torch", ">limit", ">correlation", ">limit", ">rung before")
    table = _table(*head, *((">on feeds",) if with_feeds else ()), "=")
    for rung in ladder.rungs:
        for number, step in enumerate(rung.steps):
            kept = "" if step.precision == rung.precision else f" ({step.precision})"
            table.add_row(
                rung.precision if number == 0 else "",
                f"{step.graph} {step.output}{kept}",
                f"{step.torch.error:.2g}",
                f"≤ {step.tolerance.error:g}",
                f"{step.torch.correlation:.6f}",
                f"≥ {step.tolerance.correlation:g}",
                _error(step.before),
                *((_error(step.feeds),) if with_feeds else ()),
                "ok" if step.passed else "FAILED",
            )
        table.add_section()
    return table


def _of_task(report: CheckReport) -> Table:
    table = _table("compared with", "what", ">value", ">limit", ">noise floor", "")
    for profile, verdicts in report.reference.items():
        floor = report.noise_floor.get(profile, {})
        for number, verdict in enumerate(verdicts):
            sign = "≥" if verdict.bound == "at_least" else "≤"
            table.add_row(
                "" if number else f"reference, {profile}, {report.count} scenes",
                verdict.name.replace("_", " ").replace("iou", "IoU"),
                f"{verdict.value:.4g}",
                f"{sign} {verdict.limit:g}",
                f"{floor[verdict.name]:.4g}" if verdict.name in floor else "–",
                "ok" if verdict.passed else "FAILED",
            )
        table.add_section()
    return table


def _lines(report: CheckReport) -> list[str]:
    lines = [f"{report.bundle}   {report.model} {report.precision} on {report.backend}"]
    if report.ladder.judged.note is not None:
        lines.append(f"half precision: {report.ladder.judged.note}")
    if report.noise_floor:
        lines.append("noise floor: the reference's agreement with itself under another seed; no gate")
    lines += _fault_lines(report.ladder)
    if report.not_run is not None:
        lines.append(f"NOT RUN: the comparison with the torch reference: {report.not_run}")
    if report.unanswered is not None:
        lines.append(f"NO ANSWER: the bundle does not answer {report.unanswered}")
    lines.append(_verdict(report))
    return lines


def _verdict(report: CheckReport) -> str:
    if not report.passed:
        return "FAILED"
    if report.ladder.first_failed is not None:
        return "passed; a more exact bundle it was compared with did not"
    return "passed"


def _fault_lines(ladder: Ladder) -> list[str]:
    failed = ladder.first_failed
    if failed is None:
        return []
    rung, step = failed
    lines = [f"first graph outside its tolerance: {step.graph} ({step.output}) in {rung.bundle}"]
    if ladder.fault is not None:
        return [*lines, f"first fault: {ladder.fault}"]
    return [*lines, f"NOT RUN: naming the node: {ladder.fault_not_run}"]


def _error(parity: Parity | None) -> str:
    return "–" if parity is None else f"{parity.error:.2g}"
