"""A `ProfileReport` as a page to read: the stages' bar first, then graphs, the timeline and the layers."""

from __future__ import annotations

from refdiff.profiling import drawing
from refdiff.profiling.report import GraphLayers, ProfileReport
from refdiff.profiling.words import (
    CONTEST_HEAD,
    STAGE_HEAD,
    contest_rows,
    facts,
    graph_head,
    graph_rows,
    number_of_layers,
    stage_rows,
)
from refdiff.reports import Cell, Drawing, Page, Section, Table, render

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
            f"{options['variant']}, {options['mode']}, on {options['backend']}",
            passed=None,
            verdict=f"A question takes {total.p50:.1f} ms (p90 {total.p90:.1f}, p99 {total.p99:.1f}; "
            f"{total.n} questions), from the picture's bytes to the mask.",
            sections=tuple(sections),
        )
    )


def _stages(report: ProfileReport) -> Section:
    bar = Drawing(html=drawing.stage_bar(report.stages), style=drawing.style())
    rows = tuple((*map(_text, row[:2]), *map(_number, row[2:])) for row in stage_rows(report))
    return Section(
        heading="Stages",
        lines=(
            "Above the stages, below their parts: graphs, and hatched the host's work around them. Memory is "
            "the process's most while the stage lasted.",
        ),
        drawings=(bar,),
        tables=(Table(head=STAGE_HEAD, rows=rows),),
    )


def _graphs(report: ProfileReport) -> Section:
    rows = tuple((_text(row[0]), *map(_number, row[1:])) for row in graph_rows(report))
    lines = ("Times and copies are of one call, calls and multiply-adds of one question.",)
    return Section(heading="Graphs", lines=lines, tables=(Table(head=graph_head(report), rows=rows),))


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


def _text(text: str) -> Cell:
    return Cell(text=text)


def _number(text: str) -> Cell:
    return Cell(text=text, numeric=True)
