"""The verbs `sensitivity`, `audit`, `bisect` and `calibrate`: where precision is needed; see `verbs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.cli.app import (
    Backend,
    BundleName,
    Feeds,
    Half,
    Json,
    Mode,
    Overwrite,
    RecipeFile,
    Threads,
    Variant,
    choice,
    verb,
)
from refdiff.cli.terminal import end, note, note_backend, print_answer, working
from refdiff.reports.table import Cell, Column, Table, facts_table, numeric, outcome, size_text

if TYPE_CHECKING:
    from refdiff.calibration.audit import AuditReport
    from refdiff.calibration.bisect import BisectReport
    from refdiff.calibration.calibrate import CalibrationReport
    from refdiff.calibration.graph_audit import GraphAudit
    from refdiff.calibration.output_tolerance import Outcome
    from refdiff.calibration.sensitivity import SensitivityReport


@verb()
def sensitivity(
    bundle: BundleName,
    precision: Annotated[str, choice("int8 or fp8.")] = "int8",
    recipe: RecipeFile = None,
    feeds: Annotated[
        Path | None, typer.Option(help="Feeds that `refdiff calibrate` recorded; recorded now if left out.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of scenes each block is measured on.")] = 32,
    variant: Variant = "edge",
    ranges: Annotated[str, choice("minmax, percentile or entropy.")] = "percentile",
    picture: Annotated[Path | None, typer.Option(help="Also draw the costs, as a PNG.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure what each block costs in task accuracy when it alone is held in eight bits.

    Columns: cost is the loss of mIoU in hundredths (points).
    """
    from refdiff.calibration import sensitivity
    from refdiff.contracts.atomic_io import check_targets, write_files

    if picture is not None:
        check_targets([picture], overwrite=overwrite)
    with working() as progress:
        report = sensitivity.sensitivity(
            bundle,
            precision=precision,
            recipe=recipe,
            feeds=feeds,
            ranges=ranges,
            count=count,
            variant=variant,
            progress=progress,
        )
        if picture is not None:
            write_files({picture: sensitivity.draw_costs(report)}, overwrite=overwrite)
    print_answer(report.to_json(), lambda: sensitivity_table(report), as_json=as_json)


@verb()
def audit(
    bundle: BundleName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recipe's file; BUNDLE-recipe.json if left out.")
    ] = None,
    recipe: RecipeFile = None,
    half: Half = "fp16",
    graph: Annotated[list[str] | None, choice("A graph to audit; repeatable, all if left out.")] = None,
    feeds: Feeds = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure which tensors leave half precision's range, and write a recipe (needs refdiff[export,cpu]).

    Columns: room is how many times the largest magnitude fits into the range of half precision.

    Exit code 1 if something is left that no recipe fixes: NaN or infinity in fp32, or ranges that do not fit.
    """
    from refdiff.calibration import audit
    from refdiff.contracts.atomic_io import check_targets, write_files

    target = output or Path(f"{Path(bundle).resolve().name}-recipe.json")
    check_targets([target], overwrite=overwrite)
    with working() as progress:
        report = audit.audit(
            bundle,
            recipe=recipe,
            half=half,
            graphs=graph or (),
            feeds=feeds,
            progress=progress,
        )
        written = target if report.passed else None
        if written is not None:
            write_files({written: report.recipe.to_text().encode()}, overwrite=overwrite)
    for warning in report.warnings:
        note(f"warning: {warning}")
    document = {**report.to_json(), "recipe": None if written is None else str(written)}
    print_answer(document, lambda: audit_table(report, written), as_json=as_json)
    if not report.passed:
        end(f"no recipe was written: {report.failure}", 1)


@verb()
def bisect(
    bundle: BundleName,
    graph: Annotated[str, choice("The graph to search.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The recipe's file; BUNDLE-GRAPH-recipe.json if left out."),
    ] = None,
    recipe: RecipeFile = None,
    half: Half = "fp16",
    feeds: Feeds = None,
    most_trials: Annotated[int, typer.Option(min=1, help="Largest number of conversions to try.")] = 400,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the smallest set of nodes that a broken graph needs in more bits (needs refdiff[export,cpu]).

    BUNDLE is the fp32 bundle; --recipe is what breaks it. Exit code 1 if the graph is broken in fp32.
    The error before and after is the largest difference of an output from that in fp32, as a share of its
    range; trials are the conversions that were tried.
    """
    from refdiff.calibration import bisect
    from refdiff.contracts.atomic_io import check_targets, write_files

    target = output or Path(f"{Path(bundle).resolve().name}-{graph}-recipe.json")
    check_targets([target], overwrite=overwrite)
    with working() as progress:
        report = bisect.bisect(
            bundle,
            graph=graph,
            recipe=recipe,
            half=half,
            feeds=feeds,
            most_trials=most_trials,
            progress=progress,
        )
        written = target if report.nodes else None
        if written is not None:
            write_files({written: report.recipe.to_text().encode()}, overwrite=overwrite)
    if not report.minimal:
        note(
            f"warning: {report.trials} trials were not enough to try leaving each node out; see --most-trials"
        )
    document = {**report.to_json(), "recipe": None if written is None else str(written)}
    print_answer(document, lambda: bisection_table(report, written), as_json=as_json)


@verb()
def calibrate(
    bundle: BundleName,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images; the miniature's scenes if left out.")
    ] = None,
    phrases: Annotated[
        Path | None, typer.Option(help='A CSV file with the header "image,phrase", a line per question.')
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recording's folder; BUNDLE-feeds if left out.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Number of scenes (32 if left out) or phrases (all if left out)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the first scene.")] = None,
    variant: Annotated[
        list[str] | None,
        choice("edge, official or paper; repeatable, official and edge if left out."),
    ] = None,
    mode: Mode = "full",
    most_runs: Annotated[
        int,
        typer.Option(
            min=0, help="Most runs of one graph kept per question and variant, evenly spread; 0: all."
        ),
    ] = 4,
    backend: Backend = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Record what the pipeline feeds its graphs, for ranges and audits; a stopped recording goes on.

    Columns: recorded runs is the number of calls of the graph whose inputs are kept; a question is an image
    and a phrase.
    """
    from refdiff.calibration import calibrate
    from refdiff.contracts.options import BackendOptions, RunOptions

    with working() as progress:
        report = calibrate.calibrate(
            bundle,
            calibrate.calibration_dataset(images, phrases, count, seed),
            output=output or Path(f"{Path(bundle).resolve().name}-feeds"),
            options=[RunOptions(variant=name, mode=mode) for name in variant or ("official", "edge")],
            most_runs=most_runs or None,
            backend=BackendOptions(name=backend, threads=threads),
            overwrite=overwrite,
            progress=progress,
        )
    note_backend(backend, report.backend, report.backend_reason)
    for warning in report.warnings:
        note(f"warning: {warning}")
    print_answer(report.to_json(), lambda: calibration_table(report), as_json=as_json)


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
