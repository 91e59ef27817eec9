"""What people read of a check; see `tables`.

The verb `check`; see `verbs` for the pattern.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.cli.app import Backend, BundleName, Json, Mode, Overwrite, Threads, app
from refdiff.cli.output import note, note_backend, print_answer, working
from refdiff.cli.tables import _group, _table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from refdiff.contracts.parity import Parity
    from refdiff.verification.check import CheckReport
    from refdiff.verification.ladder import Ladder


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
    for variant, verdicts in report.reference.items():
        floor = report.noise_floor.get(variant, {})
        for number, verdict in enumerate(verdicts):
            sign = "≥" if verdict.bound == "at_least" else "≤"
            table.add_row(
                "" if number else f"reference, {variant}, {report.count} scenes",
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


@app.command()
def check(
    bundle: BundleName,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BUNDLE",
            help="A more exact bundle of the same model; repeatable. For the miniature fp32 is added.",
        ),
    ] = None,
    feeds: Annotated[
        Path | None,
        typer.Option(help="What `refdiff calibrate` recorded, to compare with the most exact bundle on."),
    ] = None,
    count: Annotated[int, typer.Option(help="Held-out scenes per variant.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the first scene.")] = 1_000_000,
    variant: Annotated[
        list[str] | None, typer.Option(help="Repeatable; official and edge if left out.")
    ] = None,
    mode: Mode = "full",
    backend: Backend = "auto",
    threads: Threads = None,
    golden_only: Annotated[
        bool, typer.Option("--golden-only", help="Leave out the torch reference.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="An HTML page of it all, with pictures of the worst cases.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure a bundle against its golden tensors and the torch reference; exit code 1 if a gate fails."""
    from refdiff.verification import check

    with working() as tell:
        measured = check.check(
            bundle,
            against=against or (),
            feeds=feeds,
            count=count,
            seed=seed,
            variants=variant or check.CHECKED_VARIANTS,
            mode=mode,
            backend=backend,
            threads=threads,
            golden_only=golden_only,
            report=report,
            overwrite=overwrite,
            progress=tell,
        )
    note_backend(backend, measured.backend, measured.backend_reason)
    print_answer(measured.to_json(), lambda: of_check(measured), as_json=as_json)
    if report is not None:
        note(f"report: {report}")
    if not measured.passed:
        note(f"error: {measured.failure}")
        raise typer.Exit(1)
