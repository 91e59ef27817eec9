"""The verb `calibrate`; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import Backend, BundleName, Json, Mode, Overwrite, Threads, choice, verb
from refdiff.cli.terminal import note, note_backend, print_answer, working


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
