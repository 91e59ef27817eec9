"""What happened when: one span for every verb, stage, load and run of a graph, nested as they were called.

Out: spans in the order they began, times in ns of a monotonic clock whose zero means nothing. One thread.

Spans in Chrome's trace event format, which chrome://tracing and Perfetto open.

In: spans of a cold start and of questions. Out: a JSON-ready document; times in µs since the first span.
Format: "Trace Event Format", complete events (ph "X").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from refdiff.runtime.observer import VERBS

Kind = Literal["verb", "stage", "graph", "load", "step"]
"""A step is what a caller names itself; a load is of a graph, at its first use."""

CLOCK = "time.perf_counter_ns"
"""CLOCK_MONOTONIC on Linux, whichever step the system's time is set by."""


@dataclass(frozen=True, kw_only=True)
class GraphCall:
    """What one run of a graph was given and gave."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of its feeds."""
    fed_bytes: int
    """From the host into the session."""
    returned_bytes: int
    """From the session to the host; what stays on a device is not counted."""
    device_ms: float | None
    """By the device's own clock, without copies; None where the back-end has none."""


@dataclass(kw_only=True)
class Span:
    """From one moment to another."""

    name: str
    kind: Kind
    parent: int | None
    """Index of the span it lies in."""
    start_ns: int
    end_ns: int = 0
    call: GraphCall | None = None
    """Of a graph."""

    @property
    def ms(self) -> float:
        """How long it was."""
        return (self.end_ns - self.start_ns) / 1e6


class Stopwatch:
    """The observer of a pipeline: writes down a span for whatever it is told of.

    Args:
        clock: in ns, and monotonic.
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
        """Write down what happens inside; what is opened inside lies in it."""
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
        """Everything since the last time; to be called between spans."""
        taken, self._spans = tuple(self._spans), []
        return taken


def trace_of(groups: Sequence[tuple[str, Sequence[Span]]]) -> dict[str, Any]:
    """A trace of one process and one thread.

    Args:
        groups: a title, such as "cold start", and its spans; each group becomes one event around its spans.
    """
    events: list[dict[str, Any]] = [
        _named("process_name", "refdiff profile"),
        _named("thread_name", "pipeline"),
    ]
    begin = min((span.start_ns for _, spans in groups for span in spans), default=0)
    for title, spans in groups:
        if not spans:
            continue
        start, end = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
        events.append(_event(title, "question", start - begin, end - start, {}))
        events += [
            _event(span.name, span.kind, span.start_ns - begin, span.end_ns - span.start_ns, _details(span))
            for span in spans
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(
    name: str, category: str, start_ns: int, length_ns: int, details: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "pid": 1,
        "tid": 1,
        "ts": start_ns / 1e3,
        "dur": length_ns / 1e3,
        "args": details,
    }


def _named(kind: str, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": 1, "args": {"name": name}}


def _details(span: Span) -> dict[str, Any]:
    call = span.call
    if call is None:
        return {}
    return {
        "feeds": {name: "×".join(map(str, shape)) for name, shape in call.shapes.items()},
        "fed_bytes": call.fed_bytes,
        "returned_bytes": call.returned_bytes,
        "device_ms": call.device_ms,
    }
