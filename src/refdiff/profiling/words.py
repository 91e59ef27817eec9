"""The lines under a profile, for terminal and page alike: clocks, peak, memory, machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from refdiff.profiling.report import GraphLayers, ProfileReport
from refdiff.profiling.samples import Percentiles
from refdiff.profiling.sensors import NOT_TOLD, Memory

if TYPE_CHECKING:
    from refdiff.profiling.polygraphy_runners import Apart

_REASONS_SHOWN = 3
_RESTLESS = 0.9
"""Share of the fastest round's yardstick below which a slower one says that the machine was not quiet."""


def facts(report: ProfileReport) -> list[str]:
    """Everything beside the numbers that a reader needs to believe them."""
    lines = [f"clock of {what}: {clock}" for what, clock in report.clocks.items() if clock is not None]
    lines += _peak(report)
    lines += _contests(report)
    if report.arithmetic_unknown is not None:
        lines.append(f"multiply-adds unknown: {report.arithmetic_unknown}")
    return [*lines, _memory(report), *_machine(report)]


STAGE_HEAD = ("stage", "part", "calls", "p50 ms", "p90 ms", "p99 ms", "share", "private memory")


def stage_rows(report: ProfileReport) -> Iterator[tuple[str, ...]]:
    """As `STAGE_HEAD` says; memory is the whole stage's, on its first row."""
    shown = None
    for row in report.stages:
        stage = row.part.stage
        memory = report.memory.stages.get(stage) if stage != shown else None
        shown = stage
        yield (
            stage,
            row.part.what,
            f"{row.calls:g}" if row.calls else "",
            *_percentiles(row.ms),
            f"{row.share:.1%}",
            size(memory.private) if memory else "",
        )


def graph_head(report: ProfileReport) -> tuple[str, ...]:
    """What the columns of `graph_rows` are."""
    return (
        *("graph", "calls", "p50 ms", "p90 ms", "p99 ms"),
        *(("device p50 ms",) if _on_device(report) else ()),
        *("share", "G multiply-adds", "GFLOP/s", "of peak", "fed", "returned", "private memory"),
    )


def graph_rows(report: ProfileReport) -> Iterator[tuple[str, ...]]:
    """As `graph_head` says: times and copies of one call, calls and multiply-adds of one question."""
    for row in report.graphs:
        device = (f"{row.device_ms.p50:.2f}" if row.device_ms else "–",) if _on_device(report) else ()
        yield (
            row.graph,
            f"{row.calls:.3g}",
            *_percentiles(row.ms),
            *device,
            f"{row.share:.1%}",
            "unknown" if row.multiply_adds is None else f"{row.multiply_adds / 1e9:.3f}",
            "unknown" if row.gflops is None else f"{row.gflops:.1f}",
            "unknown" if row.of_peak is None else f"{row.of_peak:.0%}",
            size(row.fed_bytes),
            size(row.returned_bytes),
            size(row.memory.private) if row.memory else "–",
        )


def _on_device(report: ProfileReport) -> bool:
    return any(row.device_ms is not None for row in report.graphs)


def _percentiles(ms: Percentiles) -> tuple[str, str, str]:
    return f"{ms.p50:.2f}", f"{ms.p90:.2f}", f"{ms.p99:.2f}"


def number_of_layers(graph: GraphLayers, shown: int) -> str:
    """How many there are, and how many of them are shown."""
    count = len(graph.layers)
    return f"the longest {shown} of {count} layers" if count > shown else f"{count} layers"


def size(count: float) -> str:
    """Bytes for a narrow column."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _peak(report: ProfileReport) -> list[str]:
    peak = report.peak
    if peak.gflops is None:
        return [f"peak: unknown: {peak.how}"]
    slowest, fastest = min(peak.rounds), max(peak.rounds)
    lines = [
        f"peak: {peak.gflops:.1f} GFLOP/s, the best run of {peak.how}; "
        f"its middle run before a round: {slowest:.1f} to {fastest:.1f}"
    ]
    if slowest < _RESTLESS * fastest:
        lines.append("the machine was not quiet: the same product took longer in some rounds than in others")
    return lines


def _contests(report: ProfileReport) -> list[str]:
    if not report.contests:
        return []
    failures = {f"{name}: {why}" for each in report.contests for name, why in each.failures.items()}
    return [
        "back-ends: times by our clock around each runner, on the golden feeds; differences by Polygraphy's "
        "comparator, absolute, and within the graph's tolerance. Polygraphy's own figure is no latency: its "
        "maintainers say the tool is not for that (github.com/NVIDIA/TensorRT/issues/3260)",
        *(f"not compared: {failure}" for failure in sorted(failures)),
    ]


def contest_rows(report: ProfileReport) -> Iterator[tuple[str, ...]]:
    """Graph, runner, p50, p90, p99, Polygraphy's figure, largest differences, verdict; see `CONTEST_HEAD`."""
    for each in report.contests:
        for contender in each.contenders:
            within = all(apart.within for apart in (*contender.from_golden, *contender.from_first))
            yield (
                each.graph,
                contender.name,
                *_percentiles(contender.ms),
                f"{contender.polygraphy_ms:.2f}",
                _largest(contender.from_golden),
                _largest(contender.from_first),
                "ok" if within else "OUTSIDE",
            )


CONTEST_HEAD = (
    *("graph", "runner", "p50 ms", "p90 ms", "p99 ms", "Polygraphy's", "from torch", "from first"),
    "tolerance",
)


def _largest(differences: Sequence[Apart]) -> str:
    return f"{max(each.max_absolute for each in differences):.2g}" if differences else "–"


def _memory(report: ProfileReport) -> str:
    use = report.memory
    moments = (("before", use.before), ("loaded", use.loaded), ("most of a round", use.most))
    told = ", ".join(f"{name} {_both(memory)}" for name, memory in moments)
    mark = (
        ""
        if use.high_water_resident is None
        else f"; resident high-water mark {size(use.high_water_resident)}"
    )
    return f"memory of the process, resident (private): {told}{mark}"


def _machine(report: ProfileReport) -> list[str]:
    machine, start, end = report.machine, report.start, report.end
    name = machine["model"] or machine["processor"]
    return [
        f"machine: {name}, {machine['cores']} cores, GPU: {machine['gpu'] or 'none'}; "
        f"power mode: {machine['power_mode'] or NOT_TOLD}",
        f"clocks, start -> end: {_between(start.clocks_hz, end.clocks_hz, 1e6, 'MHz')}",
        f"temperatures, start -> end: {_between(start.temperatures_c, end.temperatures_c, 1, '°C')}",
        _throttled(report),
    ]


def _throttled(report: ProfileReport) -> str:
    if not (report.start.clocks_hz or report.start.throttling):
        return f"throttling: {NOT_TOLD}"
    reasons = sorted({reason for sample in report.samples for reason in sample.throttled})
    shown = f": {'; '.join(reasons[:_REASONS_SHOWN])}" if reasons else ""
    return f"throttled questions: {report.throttled} of {len(report.samples)}{shown}"


def _between(start: Mapping[str, float], end: Mapping[str, float], unit: float, name: str) -> str:
    told = [f"{n} {value / unit:.0f} -> {end[n] / unit:.0f} {name}" for n, value in start.items() if n in end]
    return ", ".join(told) or NOT_TOLD


def _both(memory: Memory | None) -> str:
    return NOT_TOLD if memory is None else f"{size(memory.resident)} ({size(memory.private)})"
