"""What people read of a diagnosis; see `tables`."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from refdiff.cli.tables import _group, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.api import DoctorReport


def of_diagnosis(report: DoctorReport) -> RenderableType:
    """One table with a block for each section: state, what was looked at, what was found, the cure."""
    table = _table("=", "", "found", "cure")
    for section, findings in groupby(report.findings, key=lambda finding: finding.section):
        table.add_row("", section.upper())
        for each in findings:
            table.add_row(each.state, each.name, each.found, each.cure)
    return _group(table)
