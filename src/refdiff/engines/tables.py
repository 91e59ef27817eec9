"""Lay out the reports of `build` and `lint` as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from refdiff.reports import Cell, Column, Section, Table, numeric, size_text

if TYPE_CHECKING:
    from refdiff.engines.build import BuildReport
    from refdiff.engines.lint import LintReport
    from refdiff.engines.trt.attention_blocks import AttentionBlock


def build_section(report: BuildReport, *, fusion: bool = False) -> Section:
    """Lay out one row per plan, and where the plans are; with `fusion` one row per attention as well."""
    rows = []
    for built in report.graphs:
        metadata = built.metadata
        activations = metadata.activation_bytes
        rows.append(
            (
                metadata.identity.graph,
                metadata.identity.precision,
                size_text(metadata.plan_bytes),
                "–" if activations is None else size_text(activations),
                _fused(metadata.attention),
                f"{metadata.seconds:.1f}",
                "kept" if built.reused else "built",
                metadata.identity.key[:12],
            )
        )
    columns = (
        *(Column("graph"), Column("precision"), *numeric("plan", "activations")),
        *(*numeric("fused", "seconds", optional=1), Column(), Column("key", optional=2)),
    )
    folders = sorted({str(built.plan.parent) for built in report.graphs})
    places = [f"plans, metadata and build logs: {folder}" for folder in folders]
    attention = [(built.metadata.identity.graph, built.metadata.attention) for built in report.graphs]
    plans = Table(columns=columns, rows=rows, footnotes=places)
    line = (
        f"{report.bundle}   {report.flavour} {report.version} ({report.reason}), for "
        f"{', '.join(report.targets)}; GPU here: {report.device or 'none'}"
    )
    return Section(lines=(line,), tables=(plans, _attention(attention)) if fusion else (plans,))


def lint_section(report: LintReport, *, fusion: bool = False) -> Section:
    """Lay out one row per refusal and risk, and one for a graph without; with `fusion` one per attention."""
    rows: list[tuple[Cell | str, ...]] = []
    for graph in report.graphs:
        head = (graph.graph, graph.precision, str(graph.layers))
        found: list[tuple[Cell | str, ...]] = [
            (Cell("REFUSED", "bad"), f"{each.node} {each.operator}", f"{each.reason}; {each.cure}")
            for each in graph.refusals
        ]
        found += [(each.rule, each.layer, each.because) for each in graph.findings]
        rows += [(*head, *row) for row in found or [(Cell("ok", "good"), "", "")]]
    columns = (
        *(Column("graph", grouped=True), Column("precision", grouped=True, optional=1)),
        *(Column("layers", numeric=True, grouped=True, optional=2), Column("verdict", wrap=True)),
        *(Column("where", wrap=True), Column("why", wrap=True)),
    )
    verdict = "the parser takes every graph" if report.passed else "REFUSED"
    attention = _attention((graph.graph, graph.attention) for graph in report.graphs)
    line = f"{report.bundle}   {report.flavour} {report.version} ({report.reason})"
    graphs = Table(columns=columns, rows=rows, footnotes=(verdict,))
    return Section(lines=(line,), tables=(graphs, attention) if fusion else (graphs,))


def _attention(graphs: Iterable[tuple[str, Sequence[AttentionBlock]]]) -> Table:
    """Lay out one row per attention: whether one kernel computes it."""
    return Table(
        columns=(
            *(Column("graph", grouped=True), Column("softmax", wrap=True)),
            *(Column("fused"), Column("why not", wrap=True)),
        ),
        rows=[
            (
                name,
                block.softmax,
                _fusion_verdict(block),
                "; ".join(block.obstacles) or ("TensorRT's own choice" if block.fused is False else ""),
            )
            for name, blocks in graphs
            for block in blocks
        ],
    )


def _fusion_verdict(block: AttentionBlock) -> Cell:
    if block.fused is None:
        return Cell("cannot be", "bad") if block.obstacles else Cell("can be")
    return Cell("yes", "good") if block.fused else Cell("NO", "bad")


def _fused(blocks: Sequence[AttentionBlock]) -> str:
    """Return how many attentions of a plan are fused, out of how many."""
    if not blocks or any(block.fused is None for block in blocks):
        return "?" if blocks else "–"
    return f"{sum(bool(block.fused) for block in blocks)} of {len(blocks)}"
