"""A profile, or a comparison of two, laid out for a reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from refdiff.profiling.report import GraphLayers, ProfileReport
from refdiff.profiling.sensors import NOT_REPORTED, Memory
from refdiff.profiling.spans import Percentiles
from refdiff.reports.page import Bar, Page, Section
from refdiff.reports.table import Cell, Column, Table, numeric, size_text

if TYPE_CHECKING:
    from refdiff.profiling.compare_backends import BackendComparison
    from refdiff.profiling.comparison import Comparison
    from refdiff.profiling.polygraphy_runners import OutputDifference

_LAYERS_SHOWN = 30

_REASONS_SHOWN = 3

_QUIET = 0.9
"""A round whose matrix product reached less than this share of the fastest round's was disturbed."""


def profile_page(report: ProfileReport) -> Page:
    """Lay out a whole profile."""
    options, total = report.options, report.total
    sections = [_stages(report), _graphs(report), _cold_start(report)]
    if report.layers:
        sections.append(_layers(report.layers))
    if report.backends:
        sections.append(backends_section(report.backends))
    sections.append(Section(heading="How it was measured", lines=[*_conditions(report)]))
    return Page(
        title=f"refdiff profile: {report.bundle['model']} in {report.bundle['precision']}, variant "
        f"{options['variant']}, mode {options['mode']}, on {options['backend']}",
        passed=None,
        verdict=f"A sample takes {total.p50:.1f} ms (p90 {total.p90:.1f}, p99 {total.p99:.1f}; "
        f"{total.n} samples, {len(options['questions'])} a round), from the image's bytes to the mask.",
        sections=sections,
    )


def comparison_table(comparison: Comparison) -> Table:
    """Lay out one row per row of the two records, and the verdict."""
    rows = []
    for change in comparison.changes:
        stage, _, part = change.row.partition("/")
        slower = change.verdict == "slower"
        rows.append(
            (
                stage,
                part,
                f"{change.before_ms:.3f}",
                f"{change.after_ms:.3f}",
                f"{change.after_ms / change.before_ms - 1:+.1%}" if change.before_ms else "–",
                f"±{change.noise_ms:.3f}",
                Cell("SLOWER", "bad") if slower else change.verdict,
            )
        )
    notes = [f"not alike: {difference}" for difference in comparison.differences]
    if comparison.machine_change:
        notes.append(
            f"the machine itself differed by {comparison.machine_change:.1%}, on the same matrix product"
        )
    if any(comparison.left_out):
        notes.append("throttled rounds left out: {} and {}".format(*comparison.left_out))
    notes.append(
        "FAILED: slower beyond the noise"
        if comparison.slower
        else "passed: nothing is slower beyond the noise"
    )
    columns = (
        *(Column("stage"), Column("part", wrap=True), *numeric("before ms", "after ms", "change")),
        *(*numeric("noise ms", optional=1), Column()),
    )
    title = f"{comparison.before} -> {comparison.after}"
    return Table(title=title, columns=columns, rows=rows, footnotes=notes)


def _stages(report: ProfileReport) -> Section:
    shares: dict[str, float] = {}
    differs = _differ(memory.private for memory in report.memory.stages.values())
    rows = []
    for row in report.stages:
        stage = row.part.stage
        memory = None if stage in shares else report.memory.stages.get(stage)
        shares[stage] = shares.get(stage, 0.0) + row.share
        rows.append(
            (
                stage,
                row.part.name,
                f"{row.calls:g}" if row.calls else "",
                *_percentiles(row.ms),
                f"{row.share:.1%}",
                *((size_text(memory.private) if memory else "",) if differs else ()),
            )
        )
    columns = (
        *(Column("stage", grouped=True), Column("part")),
        *(*numeric("calls", optional=1), *numeric("p50 ms"), *numeric("p90 ms", "p99 ms", optional=1)),
        *(*numeric("share"), *(numeric("private memory", optional=2) if differs else ())),
    )
    return Section(
        heading="Stages",
        explanation="A stage's parts are its graphs and the host's work around them. Memory is the process's "
        "highest while the stage lasted. For a timeline of every span, profile with --trace FILE and open "
        "that file in ui.perfetto.dev or chrome://tracing.",
        bars=(Bar(shares=list(shares.items())),),
        tables=(Table(columns=columns, rows=rows),),
    )


def _graphs(report: ProfileReport) -> Section:
    differs = _differ(row.memory.private for row in report.graphs if row.memory)
    on_device = any(row.device_ms is not None for row in report.graphs)
    columns = (
        *(Column("graph"), *numeric("calls", "p50 ms"), *numeric("p90 ms", "p99 ms", optional=1)),
        *(numeric("device p50 ms") if on_device else ()),
        *(*numeric("share", "GMACs"), *numeric("GFLOP/s", optional=1), *numeric("of peak")),
        *(
            *numeric("fed", "returned", optional=2),
            *(numeric("private memory", optional=3) if differs else ()),
        ),
    )
    rows = []
    for row in report.graphs:
        device = (f"{row.device_ms.p50:.2f}" if row.device_ms else "–",) if on_device else ()
        rows.append(
            (
                row.graph,
                f"{row.calls:.3g}",
                *_percentiles(row.ms),
                *device,
                f"{row.share:.1%}",
                "unknown" if row.macs is None else f"{row.macs / 1e9:.3f}",
                "unknown" if row.gflops is None else f"{row.gflops:.1f}",
                "unknown" if row.of_peak is None else f"{row.of_peak:.0%}",
                size_text(row.fed_bytes),
                size_text(row.returned_bytes),
                *((size_text(row.memory.private) if row.memory else "–",) if differs else ()),
            )
        )
    return Section(
        heading="Graphs",
        explanation="Times and copies are of one call, calls and multiply-adds (MACs) of one sample.",
        tables=(Table(columns=columns, rows=rows),),
    )


def _differ(sizes: Iterable[float]) -> bool:
    """Return whether memory is worth a column: a figure that is the same in each row tells nothing."""
    return len({size_text(size) for size in sizes}) > 1


def _percentiles(ms: Percentiles) -> tuple[str, str, str]:
    return f"{ms.p50:.2f}", f"{ms.p90:.2f}", f"{ms.p99:.2f}"


def _cold_start(report: ProfileReport) -> Section:
    rows = [(name, f"{ms:.1f}") for name, ms in report.cold_steps]
    return Section(
        heading="Cold start",
        explanation="In this process, with the files as the system had them cached.",
        tables=(Table(columns=(Column("step"), *numeric("ms")), rows=rows),),
    )


def _layers(graphs: Sequence[GraphLayers]) -> Section:
    layers = sorted(
        ((layer, graph) for graph in graphs for layer in graph.layers), key=lambda pair: -pair[0].ms
    )
    rows = [
        (
            graph.graph,
            layer.name,
            layer.operator or "–",
            str(layer.calls),
            f"{layer.ms / layer.calls:.3f}",
            f"{layer.ms / graph.ms:.1%}",
        )
        for layer, graph in layers[:_LAYERS_SHOWN]
    ]
    columns = (
        *(Column("graph"), Column("layer", wrap=True), Column("operator", wrap=True, optional=2)),
        *(*numeric("calls", optional=1), *numeric("ms a call", "of its graph")),
    )
    note = f"the longest {len(rows)} of {len(layers)} layers; all of them are in the JSON document (--json)"
    return Section(
        heading="Layers",
        explanation="Measured in a pass of their own, because being recorded slows layers down: read shares.",
        tables=(Table(columns=columns, rows=rows, footnotes=(note,)),),
    )


def backends_section(comparisons: Sequence[BackendComparison]) -> Section:
    """Lay out every graph's runners side by side."""
    rows = []
    for each in comparisons:
        for timing in each.timings:
            within = all(difference.within for difference in (*timing.from_golden, *timing.from_first))
            rows.append(
                (
                    each.graph,
                    timing.name,
                    *_percentiles(timing.ms),
                    f"{timing.polygraphy_ms:.2f}",
                    _largest(timing.from_golden),
                    _largest(timing.from_first),
                    Cell("ok", "good") if within else Cell("OUTSIDE", "bad"),
                )
            )
    columns = (
        *(Column("graph", grouped=True), Column("runner", wrap=True), *numeric("p50 ms")),
        *(*numeric("p90 ms", "p99 ms", optional=2), *numeric("Polygraphy's", optional=3)),
        *(*numeric("from torch"), *numeric("from first", optional=1)),
        Column("tolerance"),
    )
    failures = sorted({f"{name}: {why}" for each in comparisons for name, why in each.failures.items()})
    notes = [
        "Times by our clock around each runner, on the golden feeds; differences by Polygraphy's comparator, "
        "absolute, and within the graph's tolerance. Polygraphy's own figure is no latency: its maintainers "
        "say the tool is not for that (github.com/NVIDIA/TensorRT/issues/3260).",
        *(f"not compared: {failure}" for failure in failures),
    ]
    return Section(heading="Back-ends", tables=(Table(columns=columns, rows=rows, footnotes=notes),))


def _largest(differences: Sequence[OutputDifference]) -> str:
    return f"{max(each.max_absolute for each in differences):.2g}" if differences else "–"


def _conditions(report: ProfileReport) -> Iterator[str]:
    """Yield what a reader needs to know to believe the numbers: bundle, clocks, peak, memory, machine."""
    yield f"bundle: {report.path}"
    for name, clock in report.clocks.items():
        if clock is not None:
            yield f"clock of {name}: {clock}"
    yield from _peak(report)
    if report.macs_problem is not None:
        yield f"multiply-adds unknown: {report.macs_problem}"
    yield _memory(report)
    yield from _machine(report)


def _peak(report: ProfileReport) -> Iterator[str]:
    peak = report.peak
    if peak.gflops is None:
        yield f"peak: unknown: {peak.how}"
        return
    slowest, fastest = min(peak.rounds), max(peak.rounds)
    yield (
        f"peak: {peak.gflops:.1f} GFLOP/s, the best run of {peak.how}; "
        f"its median run before a round: {slowest:.1f} to {fastest:.1f}"
    )
    if slowest < _QUIET * fastest:
        yield "the machine was not quiet: the same product took longer in some rounds than in others"


def _memory(report: ProfileReport) -> str:
    use = report.memory
    moments = (("before", use.before), ("loaded", use.loaded), ("most of a round", use.highest))
    seen = ", ".join(f"{name} {_both(memory)}" for name, memory in moments)
    mark = use.high_water_resident
    highest = "" if mark is None else f"; resident high-water mark {size_text(mark)}"
    return f"memory of the process, resident (private): {seen}{highest}"


def _both(memory: Memory | None) -> str:
    return NOT_REPORTED if memory is None else f"{size_text(memory.resident)} ({size_text(memory.private)})"


def _machine(report: ProfileReport) -> Iterator[str]:
    machine, start, end = report.machine, report.start, report.end
    yield (
        f"machine: {machine['model'] or machine['processor']}, {machine['cores']} cores, "
        f"GPU: {machine['gpu'] or 'none'}; power mode: {machine['power_mode'] or NOT_REPORTED}"
    )
    yield f"clocks, start -> end: {_change(start.clocks_hz, end.clocks_hz, 1e6, 'MHz')}"
    yield f"temperatures, start -> end: {_change(start.temperatures_c, end.temperatures_c, 1, '°C')}"
    if not (start.clocks_hz or start.throttling):
        yield f"throttling: {NOT_REPORTED}"
        return
    reasons = sorted({reason for sample in report.samples for reason in sample.throttled})
    shown = f": {'; '.join(reasons[:_REASONS_SHOWN])}" if reasons else ""
    yield f"throttled samples: {report.throttled} of {len(report.samples)}{shown}"


def _change(start: Mapping[str, float], end: Mapping[str, float], unit: float, name: str) -> str:
    known = [
        f"{key} {value / unit:.0f} -> {end[key] / unit:.0f} {name}"
        for key, value in start.items()
        if key in end
    ]
    return ", ".join(known) or NOT_REPORTED
