"""A `ProfileReport` as a page to read: the stages' bar first, then graphs, the timeline and the layers."""

from __future__ import annotations

from refdiff.accuracy.report import Cell, Drawing, Page, Section, Table, render
from refdiff.api.profile_report import GraphLayers, ProfileReport
from refdiff.api.profile_words import CONTEST_HEAD, contest_rows, facts, number_of_layers, size
from refdiff.profiling import drawing
from refdiff.profiling.samples import Percentiles

_LAYERS_SHOWN = 25


def page_of_profile(report: ProfileReport) -> str:
    """The report as one HTML page."""
    total, options = report.total, report.options
    sections = [_stages(report), _graphs(report), _timeline(report), _cold(report)]
    if report.layers:
        sections.append(_layers(report))
    if report.contests:
        sections.append(_contests(report))
    sections.append(Section(heading="How it was measured", lines=tuple(facts(report))))
    return render(
        Page(
            title=f"refdiff profile: {report.bundle['model']} in {report.bundle['precision']}, "
            f"{options['profile']}, {options['mode']}, on {options['backend']}",
            passed=None,
            verdict=f"A question takes {total.p50:.1f} ms (p90 {total.p90:.1f}, p99 {total.p99:.1f}; "
            f"{total.n} questions), from the picture's bytes to the mask.",
            sections=tuple(sections),
        )
    )


def _stages(report: ProfileReport) -> Section:
    bar = Drawing(html=drawing.stage_bar(report.stages), style=drawing.style())
    rows = []
    for row in report.stages:
        memory = report.memory.stages.get(row.part.stage)
        texts = (
            f"{row.calls:g}" if row.calls else "",
            *_percentiles(row.ms),
            f"{row.share:.1%}",
            "–" if memory is None else size(memory.private),
        )
        rows.append((Cell(text=row.part.stage), Cell(text=row.part.what), *map(_number, texts)))
    head = ("stage", "part", "calls", "p50 ms", "p90 ms", "p99 ms", "share", "private memory")
    return Section(
        heading="Stages",
        lines=(
            "Above the stages, below their parts: graphs, and hatched the host's work around them. Memory is "
            "the process's most while the stage lasted.",
        ),
        drawings=(bar,),
        tables=(Table(head=head, rows=tuple(rows)),),
    )


def _graphs(report: ProfileReport) -> Section:
    on_device = any(row.device_ms is not None for row in report.graphs)
    rows = []
    for row in report.graphs:
        texts = (
            f"{row.calls:g}",
            *_percentiles(row.ms),
            *(("–" if row.device_ms is None else f"{row.device_ms.p50:.2f}",) if on_device else ()),
            f"{row.share:.1%}",
            "unknown" if row.multiply_adds is None else f"{row.multiply_adds / 1e9:.3f} G",
            "unknown" if row.gflops is None else f"{row.gflops:.1f}",
            "unknown" if row.of_peak is None else f"{row.of_peak:.0%}",
            size(row.fed_bytes),
            size(row.returned_bytes),
            "–" if row.memory is None else size(row.memory.private),
        )
        rows.append((Cell(text=row.graph), *map(_number, texts)))
    head = (
        *("graph", "calls", "p50 ms", "p90 ms", "p99 ms"),
        *(("device p50 ms",) if on_device else ()),
        *("share", "multiply-adds"),
        *("GFLOP/s", "of peak", "fed", "returned", "private memory"),
    )
    lines = ("Times and copies are of one call, calls and multiply-adds of one question.",)
    return Section(heading="Graphs", lines=lines, tables=(Table(head=head, rows=tuple(rows)),))


def _timeline(report: ProfileReport) -> Section:
    groups = [*report.typical_round(), ("cold start", report.cold)]
    drawn = Drawing(html=drawing.timeline(groups), style=drawing.style(), script=drawing.script())
    lines = (
        "The round in the middle, and the cold start. Wheel or + and − zoom, dragging moves, a double click "
        "fits one span.",
    )
    return Section(heading="Timeline", lines=lines, drawings=(drawn,))


def _cold(report: ProfileReport) -> Section:
    rows = tuple((Cell(text=name), _number(f"{ms:.1f}")) for name, ms in report.cold_steps)
    lines = ("In this process, with the files as the system had them cached.",)
    return Section(heading="Cold start", lines=lines, tables=(Table(head=("step", "ms"), rows=rows),))


def _layers(report: ProfileReport) -> Section:
    lines = (
        "From a pass of their own: being written down makes layers slower. Their shares are what to read.",
    )
    return Section(heading="Layers", lines=lines, tables=tuple(map(_of_graph, report.layers)))


def _of_graph(graph: GraphLayers) -> Table:
    rows = tuple(
        (
            Cell(text=layer.name),
            Cell(text=layer.operator or "–"),
            *map(_number, (str(layer.calls), f"{layer.ms / layer.calls:.3f}", f"{layer.ms / graph.ms:.1%}")),
        )
        for layer in graph.longest()[:_LAYERS_SHOWN]
    )
    return Table(
        title=f"{graph.graph}: {number_of_layers(graph, _LAYERS_SHOWN)}",
        head=("layer", "operator", "calls", "ms a call", "share"),
        rows=rows,
    )


def _contests(report: ProfileReport) -> Section:
    rows = tuple(
        (
            *(Cell(text=text) for text in row[:2]),
            *map(_number, row[2:-1]),
            Cell(text=row[-1], tone="good" if row[-1] == "ok" else "bad"),
        )
        for row in contest_rows(report)
    )
    return Section(heading="Back-ends", tables=(Table(head=CONTEST_HEAD, rows=rows),))


def _percentiles(ms: Percentiles) -> tuple[str, str, str]:
    return f"{ms.p50:.2f}", f"{ms.p90:.2f}", f"{ms.p99:.2f}"


def _number(text: str) -> Cell:
    return Cell(text=text, numeric=True)
