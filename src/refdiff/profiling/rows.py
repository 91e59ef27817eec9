"""The rows of a profile: the parts of a sample, and the graphs wherever they ran."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refdiff.profiling.samples import Part, Percentiles, TimedSample
from refdiff.profiling.sensors import Memory
from refdiff.profiling.spans import GraphCall

CountMacs = Callable[[str, Mapping[str, tuple[int, ...]]], int | None]
"""A graph's multiply-adds for the shapes of its feeds; None if they are unknown."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One part of a sample."""

    part: Part
    calls: float
    """Runs of the graph per sample, on average; 0 for the host's work."""
    ms: Percentiles
    """Time per sample."""
    share: float
    """Share of the time of all samples; the rows add up to 1."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "stage": self.part.stage,
            "part": self.part.name,
            "calls": round(self.calls, 3),
            "ms": self.ms.to_json(),
            "share": round(self.share, 5),
        }


@dataclass(frozen=True, kw_only=True)
class GraphRow:
    """One graph, wherever it ran."""

    graph: str
    calls: float
    """Runs per sample, on average."""
    ms: Percentiles
    """Time per call by the host's clock, with copies and waiting."""
    device_ms: Percentiles | None
    """Time per call by the device's clock; None if the back-end has none."""
    share: float
    macs: int | None
    """Multiply-adds per sample, on average; None: unknown."""
    gflops: float | None
    """GFLOP/s reached, two operations per multiply-add; by the device's clock if there is one."""
    of_peak: float | None
    fed_bytes: int
    """Copied from the host into the session per call, on average."""
    returned_bytes: int
    """Copied from the session to the host per call, on average."""
    memory: Memory | None
    """Highest memory of the process while the graph ran; None: not seen."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "graph": self.graph,
            "calls": round(self.calls, 3),
            "ms": self.ms.to_json(),
            "device_ms": None if self.device_ms is None else self.device_ms.to_json(),
            "share": round(self.share, 5),
            "multiply_adds": self.macs,
            "gflops": None if self.gflops is None else round(self.gflops, 2),
            "of_peak": None if self.of_peak is None else round(self.of_peak, 4),
            "fed_bytes": self.fed_bytes,
            "returned_bytes": self.returned_bytes,
            "memory": None if self.memory is None else self.memory.to_json(),
        }


def stage_rows(samples: Sequence[TimedSample]) -> tuple[StageRow, ...]:
    """Return a row per part that took time, in the method's order."""
    total = sum(sample.ms for sample in samples)
    parts = sorted({part for sample in samples for part in sample.parts}, key=lambda part: part.order)
    rows = []
    for part in parts:
        values = [sample.parts.get(part, 0.0) for sample in samples]
        calls = sum(where == part for sample in samples for where, _, _ in sample.calls)
        rows.append(
            StageRow(
                part=part,
                calls=calls / len(samples),
                ms=Percentiles.of(values),
                share=sum(values) / total if total else 0.0,
            )
        )
    return tuple(rows)


def graph_rows(
    samples: Sequence[TimedSample],
    *,
    count_macs: CountMacs,
    peak_gflops: float | None,
    memory: Mapping[str, Memory],
) -> tuple[GraphRow, ...]:
    """Return a row per graph that ran, in pipeline order.

    Args:
        samples: one or more.
        count_macs: counts the multiply-adds of a call.
        peak_gflops: GFLOP/s of the machine's matrix product; None: unknown.
        memory: graph -> highest memory seen while it ran.
    """
    calls: dict[str, list[tuple[float, GraphCall]]] = defaultdict(list)
    for sample in samples:
        for part, ms, call in sample.calls:
            calls[part.name].append((ms, call))
    total, count = sum(sample.ms for sample in samples), len(samples)
    rows = []
    for graph in sorted(calls, key=lambda graph: Part("", graph).order):
        made = calls[graph]
        host = [ms for ms, _ in made]
        device = [call.device_ms for _, call in made if call.device_ms is not None]
        counts = [count_macs(graph, call.shapes) for _, call in made]
        known = [each for each in counts if each is not None]
        macs = sum(known) if len(known) == len(counts) else None
        seconds = sum(device or host) / 1e3
        gflops = 2 * macs / seconds / 1e9 if macs is not None and seconds else None
        rows.append(
            GraphRow(
                graph=graph,
                calls=len(made) / count,
                ms=Percentiles.of(host),
                device_ms=Percentiles.of(device) if device else None,
                share=sum(host) / total if total else 0.0,
                macs=None if macs is None else round(macs / count),
                gflops=gflops,
                of_peak=gflops / peak_gflops if gflops is not None and peak_gflops else None,
                fed_bytes=round(sum(call.fed_bytes for _, call in made) / len(made)),
                returned_bytes=round(sum(call.returned_bytes for _, call in made) / len(made)),
                memory=memory.get(graph),
            )
        )
    return tuple(rows)
