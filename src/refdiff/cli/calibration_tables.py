"""What people read of a calibration; see `tables`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refdiff.cli.tables import _group, _size, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.api import CalibrationReport


def of_calibration(report: CalibrationReport) -> RenderableType:
    """One row per graph, and under it what was asked and where the recording is."""
    table = _table("=graph", ">recorded runs")
    for name, count in report.graphs.items():
        table.add_row(name, str(count))
    earlier = f", {report.resumed} of them recorded earlier" if report.resumed else ""
    return _group(
        f"{report.bundle}   {report.model} on {report.backend}, {', '.join(report.profiles)}, {report.mode}",
        table,
        f"{report.new + report.resumed} questions on {report.pictures} pictures{earlier}",
        f"{report.feeds}   {_size(report.size_bytes)}, {report.seconds:.1f} s",
    )
