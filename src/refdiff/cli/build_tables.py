"""What people read of a build and of a lint; see `tables`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from refdiff.cli.tables import _group, _size, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.api import BuildReport, LintReport
    from refdiff.engines.trt.attention_blocks import AttentionBlock


def of_build(report: BuildReport, *, fusion: bool = False) -> RenderableType:
    """One row per plan, and under it where they are; with `fusion` one row per attention as well."""
    table = _table("=graph", "precision", ">plan", ">activations", ">fused", ">seconds", "", "=key")
    for built in report.graphs:
        side_car = built.side_car
        activations = side_car.activation_bytes
        table.add_row(
            side_car.identity.graph,
            side_car.identity.precision,
            _size(side_car.plan_bytes),
            "–" if activations is None else _size(activations),
            _fused(side_car.attention),
            f"{side_car.seconds:.1f}",
            "kept" if built.reused else "built",
            side_car.identity.key[:12],
        )
    folders = sorted({str(built.plan.parent) for built in report.graphs})
    return _group(
        f"{report.bundle}   {report.flavour} {report.version} ({report.reason}), for "
        f"{', '.join(report.targets)}; GPU here: {report.device or 'none'}",
        table,
        *(
            [_of_attention((g.side_car.identity.graph, g.side_car.attention) for g in report.graphs)]
            if fusion
            else []
        ),
        *(f"plans, side-cars and build logs: {folder}" for folder in folders),
    )


def of_lint(report: LintReport, *, fusion: bool = False) -> RenderableType:
    """One row per complaint and risk, and one for a graph without; with `fusion` one row per attention."""
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
    return _group(
        f"{report.bundle}   {report.flavour} {report.version} ({report.reason})",
        table,
        *([_of_attention((graph.graph, graph.attention) for graph in report.graphs)] if fusion else []),
        verdict,
    )


def _of_attention(graphs: Iterable[tuple[str, tuple[AttentionBlock, ...]]]) -> RenderableType:
    """One row per attention: whether one kernel computes it."""
    table = _table("=graph", "=softmax", "fused", "why not")
    for name, blocks in graphs:
        for number, block in enumerate(blocks):
            table.add_row(
                "" if number else name,
                block.softmax,
                _verdict(block),
                "; ".join(block.obstacles) or ("TensorRT's own choice" if block.fused is False else ""),
            )
    return table


def _verdict(block: AttentionBlock) -> str:
    if block.fused is None:
        return "cannot be" if block.obstacles else "can be"
    return "yes" if block.fused else "NO"


def _fused(blocks: tuple[AttentionBlock, ...]) -> str:
    """How many attentions of a plan are fused, of how many."""
    if not blocks or any(block.fused is None for block in blocks):
        return "?" if blocks else "–"
    return f"{sum(bool(block.fused) for block in blocks)} of {len(blocks)}"
