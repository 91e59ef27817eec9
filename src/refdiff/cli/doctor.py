"""The verb `doctor`; see `verbs` for the pattern."""

from __future__ import annotations

from typing import Annotated

import typer

from refdiff.cli.app import Json, app
from refdiff.cli.output import note, print_answer, working

_ENVIRONMENT = 3


@app.command()
def doctor(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="[BUNDLE]", help='The bundle\'s folder, or "mini"; the machine alone if left out.'
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine is, what can run on it, and what mends the rest.

    Exit code 0 with warnings too; 3 if the bundle cannot run here or, without one, if nothing can.
    """
    from refdiff.diagnostics import doctor

    with working() as tell:
        report = doctor.doctor(bundle, progress=tell)
    print_answer(report.to_json(), lambda: doctor.doctor_table(report), as_json=as_json)
    if not report.passed:
        note(f"error: {report.verdict.found}")
        raise typer.Exit(_ENVIRONMENT)
