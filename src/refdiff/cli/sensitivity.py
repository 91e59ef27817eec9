"""The verb `sensitivity`; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import BundleName, Json, Overwrite, Variant, app
from refdiff.cli.output import print_answer, working


@app.command()
def sensitivity(
    bundle: BundleName,
    precision: Annotated[str, typer.Option(help="int8 or fp8.")] = "int8",
    feeds: Annotated[
        Path | None, typer.Option(help="What `refdiff calibrate` recorded; recorded now if left out.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Scenes each block is measured on.")] = 32,
    variant: Variant = "edge",
    ranges: Annotated[str, typer.Option(help="minmax, percentile or entropy.")] = "percentile",
    picture: Annotated[Path | None, typer.Option(help="Also draw the costs, as a PNG.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure what each block costs in task accuracy when it alone is held in eight bits."""
    from refdiff.calibration import sensitivity
    from refdiff.calibration.tables import sensitivity_table
    from refdiff.contracts.atomic_io import check_targets, write_files

    if picture is not None:
        check_targets([picture], overwrite=overwrite)
    with working() as progress:
        report = sensitivity.sensitivity(
            bundle,
            precision=precision,
            feeds=feeds,
            ranges=ranges,
            count=count,
            variant=variant,
            progress=progress,
        )
        if picture is not None:
            write_files({picture: sensitivity.draw_costs(report)}, overwrite=overwrite)
    print_answer(report.to_json(), lambda: sensitivity_table(report), as_json=as_json)
