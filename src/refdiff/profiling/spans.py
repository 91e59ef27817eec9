"""Spans: when each verb, stage, load and run of a graph began and ended, nested as they were called.

`Stopwatch` observes a pipeline, `TimedSessions` wraps the sessions it runs. Spans are in the order in which
they began, in ns of a monotonic clock whose zero means nothing. One thread. A run whose outputs stay on the
device is waited for, so that its time is not counted as that of the next graph: work that a device could have
overlapped is not seen.

The spans of a sample, that is of the verbs `encode` and `segment`, are added up in parts, which are all of
its time. A part is a graph within a stage, or the host's work around the graphs of that stage; loading a
graph, and time outside every stage, are parts too.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.session import Feed, Session, SessionFactory, SessionWrapper, Timings
from refdiff.runtime.observer import STAGES, VERBS

Kind = Literal["verb", "stage", "graph", "load", "step"]
"""A step is named by the caller; a load is a graph's, at its first use."""

CLOCK = "time.perf_counter_ns"
"""CLOCK_MONOTONIC on Linux: changes of the system's time do not move it."""


@dataclass(frozen=True, kw_only=True)
class GraphCall:
    """The inputs and outputs of one run of a graph."""

    shapes: Mapping[str, tuple[int, ...]]
    """Feed -> shape."""
    fed_bytes: int
    """Copied from the host into the session."""
    returned_bytes: int
    """Copied from the session to the host; what stays on a device is not counted."""
    device_ms: float | None
    """Time by the device's own clock, without copies; None if the back-end has none."""


@dataclass(kw_only=True)
class Span:
    """A piece of work with its beginning and end."""

    name: str
    kind: Kind
    parent: int | None
    """Index of the enclosing span."""
    start_ns: int
    end_ns: int = 0
    call: GraphCall | None = None
    """Set for kind "graph"."""

    @property
    def ms(self) -> float:
        """Duration in ms."""
        return (self.end_ns - self.start_ns) / 1e6


class Stopwatch:
    """The observer of a pipeline that records a span for each event.

    Args:
        clock: monotonic, in ns.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._spans: list[Span] = []
        self._open: list[int] = []

    def stage(self, name: str) -> AbstractContextManager[Span]:
        """See `refdiff.runtime.observer.Observer`."""
        return self.span("verb" if name in VERBS else "stage", name)

    @contextmanager
    def span(self, kind: Kind, name: str) -> Iterator[Span]:
        """Record the `with` block as a span; spans opened inside are its children."""
        span = Span(name=name, kind=kind, parent=self._open[-1] if self._open else None, start_ns=0)
        self._open.append(len(self._spans))
        self._spans.append(span)
        span.start_ns = self._clock()
        try:
            yield span
        finally:
            span.end_ns = self._clock()
            self._open.pop()

    def take(self) -> tuple[Span, ...]:
        """Return the spans since the last call; to be called between spans."""
        taken, self._spans = tuple(self._spans), []
        return taken


class TimedSession(SessionWrapper):
    """A session whose runs are recorded, and return once the device is done."""

    def __init__(self, inner: Session, watch: Stopwatch) -> None:
        super().__init__(inner)
        self._watch = watch

    def _run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None, *, keep_on_device: bool
    ) -> Mapping[str, Feed]:
        with self._watch.span("graph", self._inner.graph.name) as span:
            results = self._inner.run(feeds, outputs, keep_on_device=keep_on_device)
            timings = self._inner.timings() if keep_on_device else None  # waits
        span.call = _call(feeds, results, timings or self._inner.timings())
        return results


class TimedSessions:
    """Opens timed sessions; the first opening of each is recorded as a load."""

    def __init__(self, inner: SessionFactory, watch: Stopwatch) -> None:
        self._inner = inner
        self._watch = watch
        self._known: set[str] = set()

    def open(self, name: str) -> Session:
        """See `refdiff.contracts.session.SessionFactory`."""
        if name not in self._known:
            with self._watch.span("load", name):
                self._inner.open(name)
        session = self._inner.open(name)  # again: a factory may have replaced one that failed
        self._known.add(name)
        return TimedSession(session, self._watch)

    def close(self) -> None:
        """Close every session that was opened."""
        self._known.clear()
        self._inner.close()


def _call(feeds: Mapping[str, Feed], results: Mapping[str, Feed], timings: Timings) -> GraphCall:
    return GraphCall(
        shapes={name: tuple(feed.shape) for name, feed in feeds.items()},
        fed_bytes=_host_bytes(feeds),
        returned_bytes=_host_bytes(results),
        device_ms=timings.device_ms,
    )


def _host_bytes(arrays: Mapping[str, Feed]) -> int:
    return sum(values.nbytes for values in arrays.values() if isinstance(values, np.ndarray))


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
