"""The verb `audit`; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import BundleName, Feeds, Half, Json, Overwrite, RecipeFile, app
from refdiff.cli.output import note, print_answer, working


@app.command()
def audit(
    bundle: BundleName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recipe's file; BUNDLE-recipe.json if left out.")
    ] = None,
    recipe: RecipeFile = None,
    half: Half = "fp16",
    graph: Annotated[list[str] | None, typer.Option(help="Repeatable; all graphs if left out.")] = None,
    feeds: Feeds = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure which tensors leave half precision's range, and write a recipe (needs refdiff[export,cpu]).

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
        note(f"error: no recipe was written: {report.failure}")
        raise typer.Exit(1)
