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
    most_trials: Annotated[int, typer.Option(min=1, help="Conversions to try at the most.")] = 400,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the smallest set of nodes that a broken graph needs in more bits (needs refdiff[export,cpu]).

    BUNDLE is the fp32 bundle; --recipe is what breaks it. Exit code 1 if the graph is broken in fp32.
    """
    from refdiff.calibration import bisect
    from refdiff.calibration.tables import bisection_table

    target = output or Path(f"{Path(bundle).resolve().name}-{graph}-recipe.json")
    with working() as tell:
        report = bisect.bisect(
            bundle,
            graph=graph,
            output=target,
            recipe=recipe,
            half=half,
            feeds=feeds,
            most_trials=most_trials,
            overwrite=overwrite,
            progress=tell,
        )
    written = target if report.nodes else None
    if not report.minimal:
        note(
            f"warning: {report.trials} trials were not enough to try leaving each node out; see --most-trials"
        )
    document = {**report.to_json(), "recipe": None if written is None else str(written)}
    print_answer(document, lambda: bisection_table(report, written), as_json=as_json)
