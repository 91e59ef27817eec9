"""Sessions that write down every run, whichever back-end they are of.

In: a session factory and a `Stopwatch`. Out: the same factory to its user. A run whose outputs stay on the
device is waited for here, so that its time is its own and not that of whoever reads them: what a device could
have done meanwhile is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import (
    Array,
    BatchingSession,
    ChainingSession,
    DeviceArray,
    DeviceTimedSession,
    Feed,
    Session,
    SessionFactory,
)
from refdiff.profiling.spans import GraphCall, Stopwatch


class TimedSession:
    """One graph, its runs written down."""

    def __init__(self, inner: Session, watch: Stopwatch) -> None:
        self._inner = inner
        self._watch = watch

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._inner.graph

    @property
    def most_rows(self) -> int | None:
        """The inner session's; no attribute where that says nothing."""
        return cast("BatchingSession", self._inner).most_rows

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """See `refdiff.contracts.session.Session`."""
        with self._watch.span("graph", self._inner.graph.name) as span:
            results = self._inner.run(feeds, outputs)
        span.call = _call(feeds, results, _device_ms(self._inner))
        return results

    def close(self) -> None:
        """Close the session."""
        self._inner.close()


class TimedChainingSession:
    """One graph of a back-end with a device, its runs written down."""

    def __init__(self, inner: ChainingSession, watch: Stopwatch) -> None:
        self._inner = inner
        self._watch = watch

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._inner.graph

    @property
    def most_rows(self) -> int | None:
        """The inner session's; no attribute where that says nothing."""
        return cast("BatchingSession", self._inner).most_rows

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """See `refdiff.contracts.session.ChainingSession`."""
        with self._watch.span("graph", self._inner.graph.name) as span:
            results = self._inner.run(feeds, outputs)
        span.call = _call(feeds, results, _device_ms(self._inner))
        return results

    def run_on_device(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None
    ) -> dict[str, DeviceArray]:
        """See `refdiff.contracts.session.ChainingSession`; returns once the device is done."""
        with self._watch.span("graph", self._inner.graph.name) as span:
            results = self._inner.run_on_device(feeds, outputs)
            device_ms = _device_ms(self._inner)  # waits
        span.call = _call(feeds, {}, device_ms)
        return results

    def close(self) -> None:
        """Close the session."""
        self._inner.close()


class TimedSessions:
    """Opens timed sessions; the first opening of each is written down as a load."""

    def __init__(self, inner: SessionFactory, watch: Stopwatch) -> None:
        self._inner = inner
        self._watch = watch
        self._known: set[str] = set()

    def open(self, name: str) -> Session:
        """See `refdiff.contracts.session.SessionFactory`."""
        if name not in self._known:
            with self._watch.span("load", name):
                self._inner.open(name)
        session = self._inner.open(name)  # anew: a factory may have replaced one that failed
        self._known.add(name)
        if isinstance(session, ChainingSession):
            return TimedChainingSession(session, self._watch)
        return TimedSession(session, self._watch)

    def close(self) -> None:
        """Close every session that was opened."""
        self._known.clear()
        self._inner.close()


def _device_ms(session: Session) -> float | None:
    return session.device_ms() if isinstance(session, DeviceTimedSession) else None


def _call(feeds: Mapping[str, Feed], results: Mapping[str, Array], device_ms: float | None) -> GraphCall:
    return GraphCall(
        shapes={name: tuple(feed.shape) for name, feed in feeds.items()},
        fed_bytes=sum(feed.nbytes for feed in feeds.values() if isinstance(feed, np.ndarray)),
        returned_bytes=sum(values.nbytes for values in results.values()),
        device_ms=device_ms,
    )
