"""What people read of a calibration; see `tables`.

The verb `calibrate`; see `verbs` for the pattern.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.cli.app import Backend, BundleName, Json, Mode, Overwrite, Threads, app
from refdiff.cli.output import note, note_backend, print_answer, working
from refdiff.cli.tables import _group, _size, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.calibration.calibrate import CalibrationReport


def of_calibration(report: CalibrationReport) -> RenderableType:
    """One row per graph, and under it what was asked and where the recording is."""
    table = _table("=graph", ">recorded runs")
    for name, count in report.graphs.items():
        table.add_row(name, str(count))
    earlier = f", {report.resumed} of them recorded earlier" if report.resumed else ""
    return _group(
        f"{report.bundle}   {report.model} on {report.backend}, {', '.join(report.variants)}, {report.mode}",
        table,
        f"{report.new + report.resumed} questions on {report.pictures} pictures{earlier}",
        f"{report.feeds}   {_size(report.size_bytes)}, {report.seconds:.1f} s",
    )


@app.command()
def calibrate(
    bundle: BundleName,
    images: Annotated[
        Path | None, typer.Option(help="A folder of pictures; the miniature's scenes if left out.")
    ] = None,
    phrases: Annotated[
        Path | None, typer.Option(help='A CSV file with the header "image,phrase", a line per question.')
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recording's folder; BUNDLE-feeds if left out.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Scenes, 32 if left out, or phrases, all if left out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first scene.")] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Repeatable; official and edge if left out.")
    ] = None,
    mode: Mode = "full",
    most_runs: Annotated[
        int, typer.Option(min=0, help="Of one graph, kept of a question and variant, evenly spread; 0: all.")
    ] = 4,
    backend: Backend = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Record what the pipeline feeds its graphs, for ranges and audits; a stopped recording goes on."""
    from refdiff.calibration import calibrate

    with working() as tell:
        report = calibrate.calibrate(
            bundle,
            images=images,
            phrases=phrases,
            output=output or Path(f"{Path(bundle).resolve().name}-feeds"),
            count=count,
            seed=seed,
            variants=variant or calibrate.CALIBRATED_VARIANTS,
            mode=mode,
            most_runs=most_runs or None,
            backend=backend,
            threads=threads,
            overwrite=overwrite,
            progress=tell,
        )
    note_backend(backend, report.backend, report.backend_reason)
    for warning in report.warnings:
        note(f"warning: {warning}")
    print_answer(report.to_json(), lambda: of_calibration(report), as_json=as_json)
