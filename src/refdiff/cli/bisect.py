"""The verb `bisect`; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import BundleName, Feeds, Half, Json, Overwrite, RecipeFile, app
from refdiff.cli.output import note, print_answer, working


@app.command()
def bisect(
    bundle: BundleName,
    graph: Annotated[str, typer.Option(help="The graph to search.")],
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
