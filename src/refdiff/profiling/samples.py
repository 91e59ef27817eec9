"""A question's time in parts that add up to all of it.

In: the spans of one question, a verb `encode` and a verb `segment`. Out: milliseconds by part. A part is a
stage and, of that stage, one graph or the host's work around its graphs; loads and what lies in no stage are
parts too.

What was measured of one question, and percentiles of many.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.contracts.graphs import GRAPHS
from refdiff.profiling.spans import GraphCall, Span
from refdiff.runtime.observer import STAGES

HOST = "host"
BETWEEN = "between stages"
LOADING = "loading"


@dataclass(frozen=True, order=False)
class Part:
    """One row of a profile."""

    stage: str
    what: str
    """A graph's name, or `HOST`."""

    def __str__(self) -> str:
        return f"{self.stage}/{self.what}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part whose `str` it is."""
        stage, _, what = text.partition("/")
        return cls(stage, what)

    @property
    def order(self) -> tuple[int, int]:
        """METHOD's order of stages; in a stage, graphs in pipeline order and the host last."""
        stages, graphs = (*STAGES, BETWEEN, LOADING), (*GRAPHS, HOST)
        return _place(self.stage, stages), _place(self.what, graphs)


def by_part(spans: Sequence[Span]) -> dict[Part, float]:
    """Milliseconds of each part: every span's own time, without what lies in it."""
    parts: dict[Part, float] = defaultdict(float)
    for index, span in enumerate(spans):
        inside = sum(child.ms for child in spans[index + 1 :] if child.parent == index)
        parts[part_of(spans, index)] += span.ms - inside
    return {part: parts[part] for part in sorted(parts, key=lambda each: each.order)}


def part_of(spans: Sequence[Span], index: int) -> Part:
    """Whose time it is."""
    span = spans[index]
    if span.kind == "load":
        return Part(LOADING, span.name)
    stage = next((each.name for each in _outwards(spans, index) if each.kind == "stage"), BETWEEN)
    return Part(stage, span.name if span.kind == "graph" else HOST)


def _outwards(spans: Sequence[Span], index: int) -> Iterator[Span]:
    at: int | None = index
    while at is not None:
        yield spans[at]
        at = spans[at].parent


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question: a picture encoded, and a phrase answered."""

    round: int
    """Every round asks all questions once."""
    picture: int
    """Which of them."""
    parts: Mapping[Part, float]
    """Milliseconds; they add up to all of it."""
    calls: tuple[tuple[Part, float, GraphCall], ...]
    """Every run of a graph: where, milliseconds, and what."""
    throttled: tuple[str, ...] = ()
    """Why the machine was slower than at the start; empty where it was not."""

    @property
    def ms(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, what `comparison` reads."""
        return {
            "round": self.round,
            "picture": self.picture,
            "ms": round(self.ms, 4),
            "parts": {str(part): round(ms, 4) for part, ms in self.parts.items()},
            "throttled": list(self.throttled),
        }


def sample_of(
    spans: Sequence[Span],
    *,
    round: int,
    picture: int,
    throttled: tuple[str, ...] = (),
) -> Sample:
    """The sample of a question's spans."""
    calls = tuple(
        (part_of(spans, index), span.ms, span.call)
        for index, span in enumerate(spans)
        if span.call is not None
    )
    return Sample(round=round, picture=picture, parts=by_part(spans), calls=calls, throttled=throttled)


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of milliseconds; with n samples, a percentile above 100·(1 − 1/n) is the largest of them."""

    n: int
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """Of one value or more."""
        p50, p90, p99 = (float(value) for value in np.percentile(values, PERCENTILES))
        return cls(n=len(values), p50=p50, p90=p90, p99=p99)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        figures = {"p50": self.p50, "p90": self.p90, "p99": self.p99}
        return {"n": self.n, **{name: round(value, 4) for name, value in figures.items()}}
