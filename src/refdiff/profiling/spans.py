"""Spans: when each verb, stage, load and run of a graph began and ended, nested as they were called.

`Stopwatch` observes a pipeline, `TimedSessions` wraps the sessions it runs. Spans are in the order in which
they began, in ns of a monotonic clock whose zero means nothing. One thread. A run whose outputs stay on the
device is waited for, so that its time is not counted as that of the next graph: work that a device could have
overlapped is not seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refdiff.contracts.session import Feed, Session, SessionFactory, SessionWrapper, Timings
from refdiff.runtime.observer import VERBS

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
