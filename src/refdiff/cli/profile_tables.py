"""What people read of a profile, and of two; see `tables`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from refdiff.cli.tables import _group, _table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from refdiff.profiling.comparison import Comparison
    from refdiff.profiling.report import GraphLayers, ProfileReport

_LAYERS_SHOWN = 20


def of_profile(report: ProfileReport) -> RenderableType:
    """Stages, graphs, cold start and layers as tables; the rest as lines."""
    from refdiff.profiling.words import facts

    parts: list[RenderableType | str] = [_head(report), _stages(report), _graphs(report), _cold(report)]
    if report.layers:
        parts.append(_layers(report.layers))
    if report.contests:
        parts.append(_contests(report))
    return _group(*parts, *facts(report))


def of_comparison(comparison: Comparison) -> RenderableType:
    """One row per row of the records, and the verdict."""
    table = _table("=stage", "=part", ">before ms", ">after ms", ">change", ">noise ms", "")
    for change in comparison.changes:
        stage, _, part = change.row.partition("/")
        ratio = f"{change.after_ms / change.before_ms - 1:+.1%}" if change.before_ms else "–"
        table.add_row(
            stage,
            part,
            f"{change.before_ms:.3f}",
            f"{change.after_ms:.3f}",
            ratio,
            f"±{change.noise_ms:.3f}",
            change.verdict.upper() if change.verdict == "slower" else change.verdict,
        )
    lines = [f"not alike: {difference}" for difference in comparison.differences]
    if comparison.unrest:
        lines.append(f"the machine itself differed by {comparison.unrest:.1%}, on the same matrix product")
    if any(comparison.left_out):
        lines.append("throttled rounds left out: {} and {}".format(*comparison.left_out))
    verdict = (
        "FAILED: slower beyond the noise"
        if comparison.slower
        else "passed: nothing is slower beyond the noise"
    )
    return _group(f"{comparison.before} -> {comparison.after}", table, *lines, verdict)


def _head(report: ProfileReport) -> str:
    options, bundle = report.options, report.bundle
    return (
        f"{report.path}   {bundle['model']} {bundle['precision']}, variant {options['variant']}, "
        f"mode {options['mode']}, on {options['backend']}; {report.total.n} questions "
        f"({len(options['questions'])} a round), each {report.total.p50:.1f} ms "
        f"(p90 {report.total.p90:.1f}, p99 {report.total.p99:.1f})"
    )


def _stages(report: ProfileReport) -> Table:
    from refdiff.profiling.words import STAGE_HEAD, stage_rows

    table = _table(*(f"={name}" for name in STAGE_HEAD[:2]), *(f">{name}" for name in STAGE_HEAD[2:]))
    shown = None
    for stage, *cells in stage_rows(report):
        table.add_row("" if stage == shown else stage, *cells)
        shown = stage
    return table


def _graphs(report: ProfileReport) -> Table:
    from refdiff.profiling.words import graph_head, graph_rows

    first, *others = graph_head(report)
    table = _table(f"={first}", *(f">{name}" for name in others))
    for row in graph_rows(report):
        table.add_row(*row)
    return table


def _contests(report: ProfileReport) -> Table:
    from refdiff.profiling.words import CONTEST_HEAD, contest_rows

    table = _table(
        *(f"={name}" for name in CONTEST_HEAD[:2]), *(f">{name}" for name in CONTEST_HEAD[2:-1]), ""
    )
    graph = None
    for row in contest_rows(report):
        table.add_row("" if row[0] == graph else row[0], *row[1:])
        graph = row[0]
    return table


def _cold(report: ProfileReport) -> Table:
    table = _table("cold start", ">ms")
    for name, ms in report.cold_steps:
        table.add_row(name, f"{ms:.1f}")
    return table


def _layers(graphs: Sequence[GraphLayers]) -> Table:
    """The longest of all graphs; all of them are in the JSON document."""
    table = _table("=graph", "layer", "operator", ">calls", ">ms a call", ">of its graph")
    layers = sorted(((layer, graph) for graph in graphs for layer in graph.layers), key=lambda p: -p[0].ms)
    for layer, graph in layers[:_LAYERS_SHOWN]:
        table.add_row(
            graph.graph,
            layer.name,
            layer.operator or "–",
            str(layer.calls),
            f"{layer.ms / layer.calls:.3f}",
            f"{layer.ms / graph.ms:.1%}",
        )
    return table
