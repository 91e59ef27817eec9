"""The verbs `sensitivity`, `audit`, `bisect` and `calibrate`: where precision is needed; see `verbs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    from refdiff.calibration.tables import sensitivity_table
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
    from refdiff.calibration.tables import audit_table
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
    from refdiff.calibration.tables import bisection_table
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
    from refdiff.calibration.tables import calibration_table
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
