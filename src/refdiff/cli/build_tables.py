"""What people read of a build and of a lint; see `tables`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refdiff.cli.tables import _group, _size, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.api import BuildReport, LintReport


def of_build(report: BuildReport) -> RenderableType:
    """One row per plan, and under it where they are."""
    table = _table("=graph", "precision", ">plan", ">activations", ">seconds", "", "=key")
    for built in report.graphs:
        side_car = built.side_car
        activations = side_car.activation_bytes
        table.add_row(
            side_car.identity.graph,
            side_car.identity.precision,
            _size(side_car.plan_bytes),
            "–" if activations is None else _size(activations),
            f"{side_car.seconds:.1f}",
            "kept" if built.reused else "built",
            side_car.identity.key[:12],
        )
    folders = sorted({str(built.plan.parent) for built in report.graphs})
    return _group(
        f"{report.bundle}   {report.flavour} {report.version} ({report.reason}), for "
        f"{', '.join(report.targets)}; GPU here: {report.device or 'none'}",
        table,
        *(f"plans, side-cars and build logs: {folder}" for folder in folders),
    )


def of_lint(report: LintReport) -> RenderableType:
    """One row per complaint and risk, and one for a graph without any."""
    table = _table("=graph", "precision", ">layers", "verdict", "where", "why")
    for graph in report.graphs:
        head = (graph.graph, graph.precision, str(graph.layers))
        rows = [
            *(
                ("REFUSED", f"{each.node} {each.operator}", f"{each.reason}; {each.cure}")
                for each in graph.refusals
            ),
            *((each.rule, each.layer, each.because) for each in graph.findings),
        ] or [("ok", "", "")]
        for number, row in enumerate(rows):
            table.add_row(*(("", "", "") if number else head), *row)
    verdict = "the parser takes every graph" if report.passed else "REFUSED"
    return _group(f"{report.bundle}   {report.flavour} {report.version} ({report.reason})", table, verdict)
