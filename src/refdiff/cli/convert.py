"""The verb `convert`; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import BundleName, Json, Overwrite, choice, verb
from refdiff.cli.terminal import print_answer, working


@verb()
def convert(
    bundle: BundleName,
    precision: Annotated[str, choice("fp16, bf16, int8 or fp8.")],
    recipe: Annotated[
        Path | None, typer.Option(help="A precision recipe to follow; the built-in rules if left out.")
    ] = None,
    feeds: Annotated[
        Path | None,
        typer.Option(
            help="Recording of `refdiff calibrate`, for int8 and fp8; scenes of the miniature if left out."
        ),
    ] = None,
    ranges: Annotated[str, choice("minmax, percentile or entropy.")] = "percentile",
    smooth: Annotated[
        float, typer.Option(min=0, max=1, help="Strength of SmoothQuant, for int8 and fp8; 0: none.")
    ] = 0.7,
    budget: Annotated[
        str | None, typer.Option(help='Largest loss in accuracy from eight bits, such as "mIoU -0.5".')
    ] = None,
    untimed: Annotated[
        bool,
        typer.Option(
            "--untimed",
            help="Keep int8 and fp8 even where the GPU here is slower with them: for size, or another GPU.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The new bundle's folder; BUNDLE-PRECISION if left out."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert an fp32 bundle to fewer bits, each graph checked (needs refdiff[export,cpu], but not torch).

    Columns: from torch is the largest difference from torch's outputs over their range, precision the number
    type of the weights; in the sizes of inputs and outputs a letter is a size that varies. docs/output.md
    explains all tables.
    """
    from refdiff.calibration import convert
    from refdiff.cli.verbs import bundle_section
    from refdiff.contracts.inspection import Inspection

    options = convert.PrecisionOptions(
        precision=precision,
        recipe=recipe,
        feeds=feeds,
        ranges=ranges,
        smoothing=smooth or None,
        budget=budget,
        timed=not untimed,
    )
    folder = output or Path(f"{Path(bundle).resolve().name}-{precision}")
    with working() as progress:
        manifest = convert.convert(bundle, options, output=folder, overwrite=overwrite, progress=progress)
    inspection = Inspection(path=folder, manifest=manifest)
    print_answer(inspection.to_json(), lambda: bundle_section(inspection), as_json=as_json)
