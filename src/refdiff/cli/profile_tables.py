"""What people read of a profile, and of two; see `tables`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refdiff.cli.tables import _group, _size, _table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from refdiff.api import ProfileReport
    from refdiff.api.profile_report import GraphLayers
    from refdiff.profiling.comparison import Comparison
    from refdiff.profiling.memory import Memory
    from refdiff.profiling.samples import Percentiles

_LAYERS_SHOWN = 10


def of_profile(report: ProfileReport) -> RenderableType:
    """Stages, graphs, cold start and layers as tables; the rest as lines."""
    parts: list[RenderableType | str] = [_head(report), _stages(report), _graphs(report), _cold(report)]
    parts += [_layers(each) for each in report.layers]
    return _group(*parts, *_lines(report))


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
    if any(comparison.left_out):
        lines.append("throttled rounds left out: {} and {}".format(*comparison.left_out))
    verdict = "FAILED: slower beyond the noise" if comparison.slower else "passed: nothing is slower beyond the noise"
    return _group(f"{comparison.before} -> {comparison.after}", table, *lines, verdict)


def _head(report: ProfileReport) -> str:
    options, bundle = report.options, report.bundle
    return (
        f"{report.path}   {bundle['model']} {bundle['precision']}, profile {options['profile']}, "
        f"mode {options['mode']}, on {options['backend']}; {report.total.n} questions "
        f"({len(options['questions'])} a round), each {report.total.p50:.1f} ms "
        f"(p90 {report.total.p90:.1f}, p99 {report.total.p99:.1f})"
    )


def _stages(report: ProfileReport) -> Table:
    table = _table("=stage", "=part", ">calls", ">p50 ms", ">p90 ms", ">p99 ms", ">share", ">peak memory")
    shown = None
    for row in report.stages:
        first = row.part.stage != shown
        shown = row.part.stage
        seen = report.memory.stages.get(row.part.stage) if first else None
        table.add_row(
            row.part.stage if first else "",
            row.part.what,
            f"{row.calls:g}" if row.calls else "",
            *_percentiles(row.ms),
            f"{row.share:.1%}",
            _size(seen.private) if seen else "",
        )
    return table


def _graphs(report: ProfileReport) -> Table:
    on_device = any(row.device_ms is not None for row in report.graphs)
    head = ("=graph", ">calls", ">p50 ms", ">p90 ms", ">p99 ms")
    table = _table(
        *head,
        *((">device p50 ms",) if on_device else ()),
        *(">share", ">G mult-adds", ">GFLOP/s", ">of peak", ">fed", ">returned", ">peak memory"),
    )
    for row in report.graphs:
        table.add_row(
            row.graph,
            f"{row.calls:.3g}",
            *_percentiles(row.ms),
            *((f"{row.device_ms.p50:.2f}" if row.device_ms else "–",) if on_device else ()),
            f"{row.share:.1%}",
            "unknown" if row.multiply_adds is None else f"{row.multiply_adds / 1e9:.3f}",
            "unknown" if row.gflops is None else f"{row.gflops:.1f}",
            "unknown" if row.of_peak is None else f"{row.of_peak:.0%}",
            _size(row.fed_bytes),
            _size(row.returned_bytes),
            _size(row.memory.private) if row.memory else "–",
        )
    return table


def _cold(report: ProfileReport) -> Table:
    table = _table("cold start", ">ms")
    for name, ms in report.cold_steps:
        table.add_row(name, f"{ms:.1f}")
    return table


def _layers(graph: GraphLayers) -> RenderableType:
    table = _table("layer", "operator", ">calls", ">ms", ">share")
    for layer in graph.longest()[:_LAYERS_SHOWN]:
        table.add_row(
            layer.name, layer.operator or "–", str(layer.calls), f"{layer.ms:.2f}", f"{layer.ms / graph.ms:.1%}"
        )
    return _group(f"{graph.graph}: the longest of {len(graph.layers)} layers", table)


def _lines(report: ProfileReport) -> list[str]:
    lines = [
        "share: of a question's time, from the picture's bytes to the mask; calls, multiply-adds: of a question; "
        "graphs' times, fed, returned: of a call",
        *(f"clock of {what}: {clock}" for what, clock in report.clocks.items() if clock is not None),
        f"peak: {_gflops(report.peak.gflops)}{report.peak.how}",
    ]
    if report.arithmetic_unknown is not None:
        lines.append(f"multiply-adds unknown: {report.arithmetic_unknown}")
    return [*lines, *memory_lines(report), *machine_lines(report)]


def memory_lines(report: ProfileReport) -> list[str]:
    """The process's memory, at its moments."""
    use = report.memory
    moments = (("before", use.before), ("loaded", use.loaded), ("most of a round", use.most))
    told = "   ".join(f"{name}: {_memory(memory)}" for name, memory in moments)
    mark = "" if use.high_water_resident is None else f"   resident high-water mark {_size(use.high_water_resident)}"
    return [f"memory, resident (private): {told}{mark}"]


def machine_lines(report: ProfileReport) -> list[str]:
    """What the machine says of its power, clocks and temperatures."""
    machine, start, end = report.machine, report.start, report.end
    name = machine["model"] or machine["processor"]
    clocks = _between({n: v / 1e6 for n, v in start.clocks_hz.items()}, end.clocks_hz, 1e6, "MHz")
    temperatures = _between(start.temperatures_c, end.temperatures_c, 1, "°C")
    lines = [
        f"machine: {name}, {machine['cores']} cores, GPU: {machine['gpu'] or 'none'}; "
        f"power mode: {machine['power_mode'] or 'not told here'}",
        f"clocks: {clocks}",
        f"temperatures: {temperatures}",
    ]
    if not (start.clocks_hz or start.throttling):
        return [*lines, "throttling: not told here"]
    reasons = {reason for sample in report.samples for reason in sample.throttled}
    shown = f": {'; '.join(sorted(reasons)[:3])}" if reasons else ""
    return [*lines, f"throttled questions: {report.throttled} of {len(report.samples)}{shown}"]


def _between(start: Mapping[str, float], end: Mapping[str, Any], unit: float, name: str) -> str:
    told = [f"{n} {value:.0f} -> {end[n] / unit:.0f} {name}" for n, value in start.items() if n in end]
    return "   ".join(told) or "not told here"


def _percentiles(ms: Percentiles) -> tuple[str, str, str]:
    return f"{ms.p50:.2f}", f"{ms.p90:.2f}", f"{ms.p99:.2f}"


def _memory(memory: Memory | None) -> str:
    return "not told here" if memory is None else f"{_size(memory.resident)} ({_size(memory.private)})"


def _gflops(value: float | None) -> str:
    return "unknown: " if value is None else f"{value:.1f} GFLOP/s, "
