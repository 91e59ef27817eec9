"""What people read of a diagnosis; see `tables`.

The verb `doctor`; see `verbs` for the pattern.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.cli.app import Json, app
from refdiff.cli.output import note, print_answer, working
from refdiff.cli.tables import _group, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.diagnostics.doctor import DoctorReport


def of_diagnosis(report: DoctorReport) -> RenderableType:
    """One table with a block for each section: state, what was looked at, what was found, the cure."""
    table = _table("=", "", "found", "cure")
    for section, findings in groupby(report.findings, key=lambda finding: finding.section):
        table.add_row("", section.upper())
        for each in findings:
            table.add_row(each.state, each.name, each.found, each.cure)
    return _group(table)


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
    print_answer(report.to_json(), lambda: of_diagnosis(report), as_json=as_json)
    if not report.passed:
        note(f"error: {report.verdict.found}")
        raise typer.Exit(_ENVIRONMENT)
