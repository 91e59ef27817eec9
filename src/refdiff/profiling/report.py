"""What `profile` measured, as a value, and as the record that `--compare` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.contracts.session import LayerTime
from refdiff.profiling.matmul_peak import PeakThroughput
from refdiff.profiling.rows import GraphRow, StageRow
from refdiff.profiling.samples import Percentiles, TimedSample
from refdiff.profiling.sensors import Memory, Reading
from refdiff.profiling.spans import Span

if TYPE_CHECKING:
    from refdiff.profiling.compare_backends import BackendComparison

KIND, FORMAT = "refdiff profile", 1


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
    """What the bundle is, independent of its place."""
    options: Mapping[str, Any]
    """What was run, and how."""
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
    """Why multiply-adds are unknown; None if all are known."""
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
