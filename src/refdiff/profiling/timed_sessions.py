"""Record every run of a session, whichever back-end it is of.

In: a session factory and a `Stopwatch`. Out: the same factory to its user. A run whose outputs stay on the
device is waited for here, so that its time is not counted as that of the next graph: work that a device could
have overlapped is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, overload

import numpy as np

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Array, Feed, Session, SessionFactory, Timings
from refdiff.profiling.spans import GraphCall, Stopwatch


class TimedSession:
    """A session whose runs are recorded."""

    def __init__(self, inner: Session, watch: Stopwatch) -> None:
        self._inner = inner
        self._watch = watch

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._inner.graph

    @property
    def max_batch(self) -> int | None:
        """The inner session's."""
        return self._inner.max_batch

    @overload
    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: Literal[False] = False,
    ) -> dict[str, Array]: ...

    @overload
    def run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, keep_on_device: bool
    ) -> Mapping[str, Feed]: ...

    def run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, keep_on_device: bool = False
    ) -> Mapping[str, Feed]:
        """See `refdiff.contracts.session.Session`; returns once the device is done."""
        with self._watch.span("graph", self._inner.graph.name) as span:
            results = self._inner.run(feeds, outputs, keep_on_device=keep_on_device)
            timings = self._inner.timings() if keep_on_device else None  # waits
        span.call = _call(feeds, results, timings or self._inner.timings())
        return results

    def timings(self) -> Timings:
        """See `refdiff.contracts.session.Session`."""
        return self._inner.timings()

    def close(self) -> None:
        """Close the session."""
        self._inner.close()


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
