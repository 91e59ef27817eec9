"""A profile's two tables: parts of a question, and runs of a graph.

In: samples, and what is known of the arithmetic, the machine's peak and memory. Out: rows, ready to print.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refdiff.profiling.samples import Part, Percentiles, Sample
from refdiff.profiling.sensors import Memory
from refdiff.profiling.spans import GraphCall

Count = Callable[[str, Mapping[str, tuple[int, ...]]], int | None]
"""A graph's multiply-adds for the shapes it is fed; None where nobody can count."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One part of a question."""

    part: Part
    calls: float
    """Runs of the graph for one question, on average; 0 for the host's work."""
    ms: Percentiles
    """Of one question."""
    share: float
    """Of all questions' time; the rows' shares add up to 1."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "stage": self.part.stage,
            "part": self.part.what,
            "calls": round(self.calls, 3),
            "ms": self.ms.to_json(),
            "share": round(self.share, 5),
        }


@dataclass(frozen=True, kw_only=True)
class GraphRow:
    """One graph, wherever it ran."""

    graph: str
    calls: float
    """Of one question, on average."""
    ms: Percentiles
    """Of one call, by the host's clock: copies and waiting are in it."""
    device_ms: Percentiles | None
    """Of one call, by the device's clock; None where the back-end has none."""
    share: float
    multiply_adds: int | None
    """Of one question, on average; None: unknown."""
    gflops: float | None
    """Attained, a multiply-add being two operations; by the device's clock where there is one."""
    of_peak: float | None
    fed_bytes: int
    """Of one call, on average: from the host into the session."""
    returned_bytes: int
    """Likewise: from the session to the host."""
    memory: Memory | None
    """The process's most while the graph ran; None: not seen."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "graph": self.graph,
            "calls": round(self.calls, 3),
            "ms": self.ms.to_json(),
            "device_ms": None if self.device_ms is None else self.device_ms.to_json(),
            "share": round(self.share, 5),
            "multiply_adds": self.multiply_adds,
            "gflops": None if self.gflops is None else round(self.gflops, 2),
            "of_peak": None if self.of_peak is None else round(self.of_peak, 4),
            "fed_bytes": self.fed_bytes,
            "returned_bytes": self.returned_bytes,
            "memory": None if self.memory is None else self.memory.to_json(),
        }


def stage_rows(samples: Sequence[Sample]) -> tuple[StageRow, ...]:
    """Every part that took time, in METHOD's order."""
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
    samples: Sequence[Sample],
    *,
    count: Count,
    peak_gflops: float | None,
    memory: Mapping[str, Memory],
) -> tuple[GraphRow, ...]:
    """Every graph that ran, in the order of its first part.

    Args:
        samples: one or more.
        count: multiply-adds.
        peak_gflops: what the machine makes of a matrix product; None: unknown.
        memory: graph -> the most that was seen while it ran.
    """
    calls: dict[str, list[tuple[float, GraphCall]]] = defaultdict(list)
    for sample in samples:
        for part, ms, call in sample.calls:
            calls[part.what].append((ms, call))
    total = sum(sample.ms for sample in samples)
    order = sorted(calls, key=lambda graph: Part("", graph).order)
    return tuple(
        _graph_row(graph, calls[graph], len(samples), total, count, peak_gflops, memory.get(graph))
        for graph in order
    )


def _graph_row(
    graph: str,
    calls: Sequence[tuple[float, GraphCall]],
    questions: int,
    total_ms: float,
    count: Count,
    peak_gflops: float | None,
    memory: Memory | None,
) -> GraphRow:
    host = [ms for ms, _ in calls]
    device = [call.device_ms for _, call in calls if call.device_ms is not None]
    counted = [count(graph, call.shapes) for _, call in calls]
    known = [each for each in counted if each is not None]
    multiply_adds = sum(known) if len(known) == len(counted) else None
    seconds = sum(device or host) / 1e3
    gflops = 2 * multiply_adds / seconds / 1e9 if multiply_adds is not None and seconds else None
    return GraphRow(
        graph=graph,
        calls=len(calls) / questions,
        ms=Percentiles.of(host),
        device_ms=Percentiles.of(device) if device else None,
        share=sum(host) / total_ms if total_ms else 0.0,
        multiply_adds=None if multiply_adds is None else round(multiply_adds / questions),
        gflops=gflops,
        of_peak=gflops / peak_gflops if gflops is not None and peak_gflops else None,
        fed_bytes=round(sum(call.fed_bytes for _, call in calls) / len(calls)),
        returned_bytes=round(sum(call.returned_bytes for _, call in calls) / len(calls)),
        memory=memory,
    )
