"""What people read of a sensitivity measurement; see `tables`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refdiff.cli.tables import _group, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.api.block_costs import SensitivityReport


def of_sensitivity(report: SensitivityReport) -> RenderableType:
    """One row per block, costliest first."""
    table = _table("=graph", "=block", ">nodes", ">mIoU", ">cost, points")
    for cost in report.costs:
        row = (cost.graph, cost.block, str(len(cost.nodes)), f"{cost.miou:.4f}", f"{cost.cost_points:+.2f}")
        table.add_row(*row)
    return _group(
        f"{report.type}, profile {report.profile}, {report.count} scenes, compared with {report.truth}",
        table,
        f"all in half precision: mIoU {report.half_miou:.4f}",
    )
