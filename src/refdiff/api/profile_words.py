"""The lines under a profile, for terminal and page alike: clocks, peak, memory, machine."""

from __future__ import annotations

from collections.abc import Mapping

from refdiff.api.profile_report import GraphLayers, ProfileReport
from refdiff.profiling.machine import NOT_TOLD
from refdiff.profiling.memory import Memory

_REASONS_SHOWN = 3
_RESTLESS = 0.9
"""Of two measurements of the peak: the smaller's share of the larger below which the machine was not quiet."""


def facts(report: ProfileReport) -> list[str]:
    """Everything beside the numbers that a reader needs to believe them."""
    lines = [f"clock of {what}: {clock}" for what, clock in report.clocks.items() if clock is not None]
    lines += _peak(report)
    if report.arithmetic_unknown is not None:
        lines.append(f"multiply-adds unknown: {report.arithmetic_unknown}")
    return [*lines, _memory(report), *_machine(report)]


def number_of_layers(graph: GraphLayers, shown: int) -> str:
    """How many there are, and how many of them are shown."""
    count = len(graph.layers)
    return f"the longest {shown} of {count} layers" if count > shown else f"{count} layers"


def size(count: float) -> str:
    """Bytes for a narrow column."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:  # noqa: PLR2004 - three digits
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _peak(report: ProfileReport) -> list[str]:
    peak = report.peak
    if peak.gflops is None:
        return [f"peak: unknown: {peak.how}"]
    before, after = peak.taken
    lines = [f"peak: {peak.gflops:.1f} GFLOP/s, {peak.how} ({before:.1f} before the rounds, {after:.1f} after)"]
    if min(before, after) < _RESTLESS * max(before, after):
        lines.append("the machine was not quiet: its peak changed while it was measured, so shares of it mislead")
    return lines


def _memory(report: ProfileReport) -> str:
    use = report.memory
    moments = (("before", use.before), ("loaded", use.loaded), ("most of a round", use.most))
    told = ", ".join(f"{name} {_both(memory)}" for name, memory in moments)
    mark = "" if use.high_water_resident is None else f"; resident high-water mark {size(use.high_water_resident)}"
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
