"""What `profile` measured, as a value, and as the record that `--compare` reads."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.contracts.session import LayerTime
from refdiff.profiling.compare_backends import GraphContest
from refdiff.profiling.comparison import FORMAT, KIND
from refdiff.profiling.rows import GraphRow, StageRow
from refdiff.profiling.samples import Percentiles, Sample
from refdiff.profiling.sensors import Memory, Reading
from refdiff.profiling.spans import Span


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The machine's own best."""

    gflops: float | None
    """Of the best run of the yardstick; None: unknown."""
    rounds: tuple[float, ...]
    """The middle one of its runs before each round: how quiet the machine was."""
    how: str
    """What the yardstick is, or why there is none."""

    @classmethod
    def of(cls, taken: Sequence[Sequence[float]], how: str) -> Peak:
        """From the runs before each round, which may be none."""
        best = max((run for runs in taken for run in runs), default=None)
        rounds = tuple(round(statistics.median(runs), 2) for runs in taken if runs)
        return cls(gflops=None if best is None else round(best, 2), rounds=rounds, how=how)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"gflops": self.gflops, "rounds": list(self.rounds), "how": self.how}


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Of the process; None where the kernel does not tell."""

    before: Memory | None
    """Before the bundle was opened."""
    loaded: Memory | None
    """Between questions, all graphs loaded."""
    most: Memory | None
    """During a round, sampled."""
    high_water_resident: int | None
    """The kernel's own mark, of the process's whole life."""
    stages: Mapping[str, Memory]
    """Stage -> the most while it lasted, graphs included."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        moments = {"before": self.before, "loaded": self.loaded, "most": self.most}
        return {
            **{name: None if each is None else each.to_json() for name, each in moments.items()},
            "high_water_resident_bytes": self.high_water_resident,
            "stages": {name: each.to_json() for name, each in self.stages.items()},
        }


@dataclass(frozen=True, kw_only=True)
class GraphLayers:
    """The layers of one graph in a pass of its own: being written down makes them slower."""

    graph: str
    layers: tuple[LayerTime, ...]

    @property
    def ms(self) -> float:
        """All of them."""
        return sum(layer.ms for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, the longest layer first."""
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

    def longest(self) -> Sequence[LayerTime]:
        """The layers, the longest first."""
        return sorted(self.layers, key=lambda layer: -layer.ms)


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """Everything that was measured."""

    path: Path
    bundle: Mapping[str, Any]
    """What the bundle is, wherever it lies."""
    options: Mapping[str, Any]
    """What was asked of it, and how."""
    machine: Mapping[str, Any]
    """Where."""
    versions: Mapping[str, str]
    backend_reason: str
    clocks: Mapping[str, str | None]
    """Number -> the clock it was taken with."""
    cold: tuple[Span, ...]
    """From opening the bundle to the end of the first question."""
    samples: tuple[Sample, ...]
    stages: tuple[StageRow, ...]
    graphs: tuple[GraphRow, ...]
    peak: Peak
    arithmetic_unknown: str | None
    """Why multiply-adds are unknown; None where all are known."""
    memory: MemoryUse
    start: Reading
    """Of the sensors, warmed up."""
    end: Reading
    layers: tuple[GraphLayers, ...]
    """Empty unless they were asked for."""
    contests: tuple[GraphContest, ...]
    """Graphs in several back-ends; empty unless that was asked for."""
    questions: tuple[tuple[str, tuple[Span, ...]], ...]
    """Every measured question's title and spans."""

    @property
    def total(self) -> Percentiles:
        """Of a question, from the picture's bytes to the mask."""
        return Percentiles.of([sample.ms for sample in self.samples])

    @property
    def throttled(self) -> int:
        """Questions during which the machine was slower than at the start."""
        return sum(bool(sample.throttled) for sample in self.samples)

    @property
    def cold_steps(self) -> tuple[tuple[str, float], ...]:
        """The cold start in parts that add up: steps, loads, and the rest of the first question."""
        loads = [(f"load {span.name}", span.ms) for span in self.cold if span.kind == "load"]
        steps = [(span.name, span.ms) for span in self.cold if span.kind == "step"]
        first = sum(span.ms for span in self.cold if span.kind == "verb") - sum(ms for _, ms in loads)
        return (*steps, *loads, ("first question, without loading", first))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, which `--compare` reads."""
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
            "multiply_adds_unknown": self.arithmetic_unknown,
            "memory": self.memory.to_json(),
            "sensors": {"start": self.start.to_json(), "end": self.end.to_json()},
            "throttled_questions": self.throttled,
            "layers": [each.to_json() for each in self.layers],
            "backends": [each.to_json() for each in self.contests],
            "samples": [sample.to_json() for sample in self.samples],
        }
