"""The time of one sample in parts that add up to all of it, and percentiles over many.

In: the spans of a sample, that is of the verbs `encode` and `segment`. Out: milliseconds per part. A part is
a graph within a stage, or the host's work around the graphs of that stage; loading a graph, and time outside
every stage, are parts too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.contracts.graphs import GRAPHS
from refdiff.profiling.spans import GraphCall, Span
from refdiff.runtime.observer import STAGES

HOST = "host"
BETWEEN = "between stages"
LOADING = "loading"

_STAGES = (*STAGES, BETWEEN, LOADING)
_NAMES = (*GRAPHS, HOST)


@dataclass(frozen=True)
class Part:
    """One row of a profile."""

    stage: str
    name: str
    """A graph, or `HOST`."""

    def __str__(self) -> str:
        return f"{self.stage}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part whose `str` this is."""
        stage, _, name = text.partition("/")
        return cls(stage, name)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: stages in the method's order; within one, graphs in pipeline order and the host last."""
        return _position(self.stage, _STAGES), _position(self.name, _NAMES)


def by_part(spans: Sequence[Span]) -> dict[Part, float]:
    """Return the milliseconds of each part: the time of its spans without that of their children."""
    parts: dict[Part, float] = defaultdict(float)
    for index, span in enumerate(spans):
        inside = sum(child.ms for child in spans[index + 1 :] if child.parent == index)
        parts[part_of(spans, index)] += span.ms - inside
    return {part: parts[part] for part in sorted(parts, key=lambda each: each.order)}


def part_of(spans: Sequence[Span], index: int) -> Part:
    """Return the part to which a span's own time belongs."""
    span = spans[index]
    if span.kind == "load":
        return Part(LOADING, span.name)
    at: int | None = index
    while at is not None and spans[at].kind != "stage":
        at = spans[at].parent
    return Part(BETWEEN if at is None else spans[at].name, span.name if span.kind == "graph" else HOST)


def _position(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


@dataclass(frozen=True, kw_only=True)
class TimedSample:
    """One sample: an image encoded and a phrase segmented."""

    round: int
    """Every round runs all samples once."""
    index: int
    """Position within the round."""
    parts: Mapping[Part, float]
    """Milliseconds; they add up to all of it."""
    calls: tuple[tuple[Part, float, GraphCall], ...]
    """Every run of a graph: where, milliseconds, and what was copied."""
    throttled: tuple[str, ...] = ()
    """Reason why the machine was slower than at the start; empty if it was not."""

    @classmethod
    def of(
        cls, spans: Sequence[Span], *, round: int, index: int, throttled: tuple[str, ...] = ()
    ) -> TimedSample:
        """Split the spans of a sample into parts."""
        calls = tuple(
            (part_of(spans, at), span.ms, span.call) for at, span in enumerate(spans) if span.call is not None
        )
        return cls(round=round, index=index, parts=by_part(spans), calls=calls, throttled=throttled)

    @property
    def ms(self) -> float:
        """Duration in ms."""
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, which a comparison reads."""
        return {
            "round": self.round,
            "picture": self.index,
            "ms": round(self.ms, 4),
            "parts": {str(part): round(ms, 4) for part, ms in self.parts.items()},
            "throttled": list(self.throttled),
        }


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Percentiles of milliseconds; of n values, any above 100·(1 − 1/n) is the largest value."""

    n: int
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """Summarize one or more values."""
        p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(n=len(values), p50=p50, p90=p90, p99=p99)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        figures = {"p50": self.p50, "p90": self.p90, "p99": self.p99}
        return {"n": self.n, **{name: round(value, 4) for name, value in figures.items()}}
