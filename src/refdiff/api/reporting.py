"""A `CheckReport` as a page to read: the verdict first, then where it comes from, then pictures."""

from __future__ import annotations

from refdiff.accuracy.faults import LARGEST_FP16, Fault
from refdiff.accuracy.gates import Verdict
from refdiff.accuracy.ladder import Ladder, Rung, Step
from refdiff.accuracy.report import Cell, Page, Section, Table, render
from refdiff.api.case_pictures import figure_of
from refdiff.api.check_report import CheckReport
from refdiff.contracts.closeness import Parity
from refdiff.contracts.manifest import refdiff_version


def page_of(report: CheckReport) -> str:
    """The report as one HTML page."""
    sections = [_checked(report), *_faults(report.ladder), _ladder(report.ladder), _task(report)]
    if report.worst:
        sections.append(_pictures(report))
    return render(
        Page(
            title=f"refdiff check: {report.model} in {report.precision}",
            passed=report.passed,
            verdict=_verdict(report),
            sections=tuple(sections),
        )
    )


def _verdict(report: CheckReport) -> str:
    failed = [verdict for verdict in report.verdicts if not verdict.passed]
    if failed:
        named = "; ".join(str(verdict) for verdict in failed)
        return f"{len(failed)} of {len(report.verdicts)} gates failed: {named}"
    missing = "" if report.not_run is None else " The comparison with the torch reference was not run."
    return f"all {len(report.verdicts)} gates.{missing}"


def _checked(report: CheckReport) -> Section:
    lines = [
        f"{report.bundle}: model {report.model}, precision {report.precision}, run on {report.backend}, "
        f"by refdiff {refdiff_version()}."
    ]
    if report.ladder.judged.note is not None:
        lines.append(f"Half precision: {report.ladder.judged.note}.")
    lines += [
        f"Compared with {rung.bundle}: {rung.precision}, run on {rung.backend}."
        for rung in report.ladder.rungs[:-1]
    ]
    return Section(heading="What was checked", lines=tuple(lines))


def _faults(ladder: Ladder) -> list[Section]:
    failed = ladder.first_failed
    if failed is None:
        return []
    rung, step = failed
    lines = [f"First graph outside its tolerance: {step.graph} ({step.output}) of the {rung.precision} rung."]
    if ladder.fault is None:
        lines.append(f"The node was not found: {ladder.fault_not_run}.")
        return [Section(heading="Where it breaks", lines=tuple(lines))]
    lines.append(f"{ladder.fault}.")
    table = _fault_table(ladder.fault)
    return [Section(heading="Where it breaks", lines=tuple(lines), tables=(table,))]


def _fault_table(fault: Fault) -> Table:
    node, difference = fault.result, fault.result.difference
    facts = [
        ("graph", fault.graph),
        ("node", node.node),
        ("operator", node.operator),
        ("tensor", node.tensor),
        ("compared with", fault.compared_with or "nothing: looked for NaN and Inf alone"),
        ("error", f"{difference.error:.3g} of the largest magnitude, allowed {fault.error_at_most:g}"),
        ("error of its inputs", f"{node.input_error:.3g}"),
        ("correlation", f"{difference.correlation:.6f}"),
        ("value there", f"{difference.value:.6g}"),
    ]
    if difference.expected is not None:
        facts.append(("expected there", f"{difference.expected:.6g}"))
    facts.append(("largest magnitude", f"{difference.largest:.6g} (fp16 ends at {LARGEST_FP16:.0f})"))
    if difference.largest_expected is not None:
        facts.append(("largest expected", f"{difference.largest_expected:.6g}"))
    facts.append(("NaN, Inf", f"{difference.nan}, {difference.inf} of {difference.size} values"))
    rows = tuple((Cell(text=name), Cell(text=value)) for name, value in facts)
    return Table(head=("what", "value"), rows=rows)


def _ladder(ladder: Ladder) -> Section:
    with_feeds = any(step.feeds is not None for rung in ladder.rungs for step in rung.steps)
    head = ("rung", "graph", "output", "error", "allowed", "correlation", "expected")
    head += ("from the rung before", *(("on recorded feeds",) if with_feeds else ()), "")
    rows = tuple(
        _ladder_row(rung, step, with_feeds=with_feeds) for rung in ladder.rungs for step in rung.steps
    )
    lines = [
        "Every rung is fed the bundle's golden tensors. Errors are the largest difference from torch's "
        "recorded answer over that answer's range, and limits are those of each graph's own precision."
    ]
    if with_feeds:
        lines.append("On recorded feeds, errors are from the first rung: torch has not answered them.")
    return Section(
        heading="Parity ladder: torch → " + " → ".join(rung.precision for rung in ladder.rungs),
        lines=tuple(lines),
        tables=(Table(head=head, rows=rows),),
    )


def _ladder_row(rung: Rung, step: Step, *, with_feeds: bool) -> tuple[Cell, ...]:
    kept = "" if step.precision == rung.precision else f" ({step.precision})"
    return (
        Cell(text=f"{rung.precision}{kept}"),
        Cell(text=step.graph),
        Cell(text=step.output),
        _number(f"{step.torch.error:.2e}"),
        _number(f"≤ {step.tolerance.error:g}"),
        _number(f"{step.torch.correlation:.6f}"),
        _number(f"≥ {step.tolerance.correlation:g}"),
        _number(_error(step.before)),
        *((_number(_error(step.feeds)),) if with_feeds else ()),
        _outcome(passed=step.passed),
    )


def _task(report: CheckReport) -> Section:
    if report.not_run is not None:
        line = f"Not run: {report.not_run}. Noise floor and worst cases come from this comparison."
        return Section(heading="Torch reference, on the task", lines=(line,))
    line = (
        f"{report.count} held-out scenes per profile, asked of the torch reference and of this bundle. The "
        "noise floor is how well the reference agrees with itself when the seed of its posterior draw and "
        "noise is another; it is no gate."
    )
    rows = [
        _task_row(profile, verdict, report.noise_floor.get(profile, {}).get(verdict.name))
        for profile, verdicts in report.reference.items()
        for verdict in verdicts
    ]
    head = ("profile", "what", "value", "expected", "noise floor", "")
    return Section(
        heading="Torch reference, on the task", lines=(line,), tables=(Table(head=head, rows=tuple(rows)),)
    )


def _task_row(profile: str, verdict: Verdict, floor: float | None) -> tuple[Cell, ...]:
    return (
        Cell(text=profile),
        Cell(text=verdict.name.replace("_", " ")),
        _number(f"{verdict.value:.4f}"),
        _number(f"{'≥' if verdict.bound == 'at_least' else '≤'} {verdict.limit:g}"),
        _number("–" if floor is None else f"{floor:.4f}"),
        _outcome(passed=verdict.passed),
    )


def _pictures(report: CheckReport) -> Section:
    return Section(
        heading="Worst cases",
        lines=(_differing(report),),
        figures=tuple(figure_of(case, report.precision) for case in report.worst),
    )


def _differing(report: CheckReport) -> str:
    if all(case.agreement.mask_iou == 1 for case in report.worst):
        return "Reference and bundle give the same mask on every scene; below, where attention differs most."
    return "Least mask IoU first; where masks are the same, the largest difference in attention."


def _error(parity: Parity | None) -> str:
    return "–" if parity is None else f"{parity.error:.2e}"


def _number(text: str) -> Cell:
    return Cell(text=text, numeric=True)


def _outcome(*, passed: bool) -> Cell:
    return Cell(text="ok" if passed else "FAILED", tone="good" if passed else "bad")
