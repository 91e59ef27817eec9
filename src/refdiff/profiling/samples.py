"""What was measured of one question, and percentiles of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.profiling.parts import Part, by_part, part_of
from refdiff.profiling.spans import GraphCall, Span

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
