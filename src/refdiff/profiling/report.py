"""The result of `profile`: rows of stages and graphs, and the report, the record that `--compare` reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.contracts.session import LayerTime
from refdiff.profiling.macs import PeakThroughput
from refdiff.profiling.sensors import Memory, Reading
from refdiff.profiling.spans import GraphCall, Part, Percentiles, Span, TimedSample

if TYPE_CHECKING:
    from refdiff.profiling.compare_backends import BackendComparison

KIND, FORMAT = "refdiff profile", 1


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


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Memory of the process; None where the kernel does not report it."""

    before: Memory | None
    """Before the bundle was opened."""
    loaded: Memory | None
    """Between samples, all graphs loaded."""
    highest: Memory | None
    """Highest during a round."""
    high_water_resident: int | None
    """The kernel's own mark, over the process's whole life, in bytes."""
    stages: Mapping[str, Memory]
    """Stage -> highest while it lasted, its graphs included."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        moments = {"before": self.before, "loaded": self.loaded, "most": self.highest}
        return {
            **{name: None if each is None else each.to_json() for name, each in moments.items()},
            "high_water_resident_bytes": self.high_water_resident,
            "stages": {name: each.to_json() for name, each in self.stages.items()},
        }


@dataclass(frozen=True, kw_only=True)
class GraphLayers:
    """The layers of one graph, from a pass of its own: recording slows them down."""

    graph: str
    layers: tuple[LayerTime, ...]

    @property
    def ms(self) -> float:
        """Time of all layers."""
        return sum(layer.ms for layer in self.layers)

    def longest(self) -> Sequence[LayerTime]:
        """Return the layers, the longest first."""
        return sorted(self.layers, key=lambda layer: -layer.ms)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, the longest layer first."""
        return {
            "graph": self.graph,
            "ms": round(self.ms, 4),
            "layers": [
                {
                    "name": layer.name,
                    "operator": layer.operator,
                    "calls": layer.calls,
                    "ms": round(layer.ms, 4),
                    "share": round(layer.ms / self.ms, 5) if self.ms else 0.0,
                }
                for layer in self.longest()
            ],
        }


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """Everything that was measured."""

    path: Path
    bundle: Mapping[str, Any]
    """Identity of the bundle, independent of its place."""
    options: Mapping[str, Any]
    """Options of the run."""
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    backend_reason: str
    clocks: Mapping[str, str | None]
    """Number -> the clock it was taken with."""
    cold: tuple[Span, ...]
    """From opening the bundle to the end of the first sample."""
    samples: tuple[TimedSample, ...]
    stages: tuple[StageRow, ...]
    graphs: tuple[GraphRow, ...]
    peak: PeakThroughput
    macs_problem: str | None
    """Reason why multiply-adds are unknown; None if all are known."""
    memory: MemoryUse
    start: Reading
    """Sensors after the warm-up."""
    end: Reading
    layers: tuple[GraphLayers, ...]
    """Empty unless requested."""
    backends: tuple[BackendComparison, ...]
    """Graphs in several back-ends; empty unless requested."""
    spans: tuple[tuple[str, tuple[Span, ...]], ...]
    """Title and spans of every measured sample."""

    @property
    def total(self) -> Percentiles:
        """Time of a sample, from the image's bytes to the mask."""
        return Percentiles.of([sample.ms for sample in self.samples])

    @property
    def throttled(self) -> int:
        """Number of samples during which the machine was slower than at the start."""
        return sum(bool(sample.throttled) for sample in self.samples)

    @property
    def cold_steps(self) -> tuple[tuple[str, float], ...]:
        """The cold start in parts that add up, in ms: steps, loads, and the rest of the first sample."""
        loads = [(f"load {span.name}", span.ms) for span in self.cold if span.kind == "load"]
        steps = [(span.name, span.ms) for span in self.cold if span.kind == "step"]
        first = sum(span.ms for span in self.cold if span.kind == "verb") - sum(ms for _, ms in loads)
        return (*steps, *loads, ("first question, without loading", first))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, which `--compare` reads."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "path": str(self.path),
            "bundle": dict(self.bundle),
            "options": dict(self.options),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "backend_reason": self.backend_reason,
            "clocks": dict(self.clocks),
            "cold": [{"step": name, "ms": round(ms, 4)} for name, ms in self.cold_steps],
            "question_ms": self.total.to_json(),
            "stages": [row.to_json() for row in self.stages],
            "graphs": [row.to_json() for row in self.graphs],
            "peak": self.peak.to_json(),
            "multiply_adds_unknown": self.macs_problem,
            "memory": self.memory.to_json(),
            "sensors": {"start": self.start.to_json(), "end": self.end.to_json()},
            "throttled_questions": self.throttled,
            "layers": [each.to_json() for each in self.layers],
            "backends": [each.to_json() for each in self.backends],
            "samples": [sample.to_json() for sample in self.samples],
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
