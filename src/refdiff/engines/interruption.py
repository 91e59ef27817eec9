"""Interrupt the work between two runs of graphs, or end the process when a run hangs.

`GapSessions` calls a function before each run. It may raise `CancelledError` there, or run other work on the
same engines.

`WatchedSessions` ends the process when a graph hangs in native code, which Python cannot interrupt. A driver
or a library that never returns holds the thread that called it, and no exception reaches it. All that helps
is to end the process, so that a supervisor such as systemd starts it again. Files are written atomically, so
nothing is left half-written.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from refdiff.contracts.session import Feed, Session, SessionWrapper, Timings
from refdiff.engines.factory import BackendSessions
from refdiff.errors import EngineError, InputError

Gap = Callable[[str], None]
"""Called with a graph's name right before it runs."""

ENCODER = "sam_encoder"
"""The graph that a refinement runs once per frame, and whose time decides whether there is room for it."""

CLOSED_GAPS = frozenset({"sam_masks"})
"""Graphs before which no other work may run: they read what `sam_decoder` left on the device, and that is
overwritten when `sam_decoder` runs again."""


class CancelledError(Exception):
    """The work in progress is of no use any more; raised between two graphs, never shown to a user."""


class GapSessions:
    """A session factory that calls a function before each run of a graph.

    The embedding of `sam_encoder` always comes to the host: other work in a gap may run the encoder again,
    which would overwrite an embedding on the device that the key frame still needs.

    Args:
        inner: opens the sessions; closed with this one.
        gap: called before each run, in the thread that runs it.
    """

    def __init__(self, inner: BackendSessions, gap: Gap) -> None:
        self._inner = inner
        self._sharing = False
        self.gap = gap
        self.backend = inner.backend
        self.reason = inner.reason
        self.encoder_s: float | None = None
        """Shortest time of a run of `sam_encoder` so far; the first one may include its loading."""
        self.shared: Mapping[str, Any] | None = None

    def open(self, name: str) -> Session:
        """Return the session of graph `name`; see `SessionFactory.open`."""
        return _GapSession(self._inner.open(name), self)

    def close(self) -> None:
        """Close every session that was opened."""
        self._inner.close()

    @contextmanager
    def encode_once(self) -> Iterator[None]:
        """Run `sam_encoder` once in the block, however often it is called: all calls are for one image."""
        self._sharing, self.shared = True, None
        try:
            yield
        finally:
            self._sharing, self.shared = False, None

    def note_encoded(self, outputs: Mapping[str, Any], seconds: float) -> None:
        """Keep what a run of `sam_encoder` returned for the rest of the block, and how long it took."""
        self.encoder_s = seconds if self.encoder_s is None else min(seconds, self.encoder_s)
        if self._sharing:
            self.shared = outputs


class _GapSession(SessionWrapper):
    """A session that calls the gap before it runs."""

    def __init__(self, inner: Session, sessions: GapSessions) -> None:
        super().__init__(inner)
        self._sessions = sessions

    def _run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None, *, keep_on_device: bool
    ) -> Mapping[str, Feed]:
        name = self.graph.name
        if name == ENCODER and self._sessions.shared is not None:
            return self._sessions.shared
        self._sessions.gap(name)
        if name != ENCODER:
            return super()._run(feeds, outputs, keep_on_device=keep_on_device)
        started = time.perf_counter()
        found = self._inner.run(feeds, outputs)
        self._sessions.note_encoded(found, time.perf_counter() - started)
        return found


def _end_process(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(EngineError.exit_code)


class WatchedSessions:
    """A session factory whose graphs may run for a limited time.

    Args:
        sessions: the factory of the back-end.
        run_limit_s: seconds that one run of one graph may take, the first one with its loading included. A
            limit far above the usual time tells a hang from a slow run.
        end: called with a message, in another thread, when a run takes longer; ends the process.

    Raises:
        InputError: the limit is not a positive number of seconds.
    """

    def __init__(
        self, sessions: BackendSessions, run_limit_s: float, *, end: Callable[[str], None] = _end_process
    ) -> None:
        if not 0 < run_limit_s <= threading.TIMEOUT_MAX:
            raise InputError(
                f"got a run limit of {run_limit_s} s, expected more than 0; leave it out for none"
            )
        self._sessions = sessions
        self._limit_s = run_limit_s
        self._end = end
        self.backend = sessions.backend
        self.reason = sessions.reason

    def open(self, name: str) -> Session:
        """Return the watched session of graph `name`; see `SessionFactory.open`."""
        with self.watch(name):
            session = self._sessions.open(name)
        return _WatchedSession(session, self)

    def close(self) -> None:
        """Close every session that was opened."""
        self._sessions.close()

    def watch(self, name: str) -> _Deadline:
        """Return a context that ends the process if it takes too long."""
        return _Deadline(
            self._limit_s,
            lambda: self._end(
                f"{name} did not return within {self._limit_s:g} s; start again, or raise the run limit"
            ),
        )


class _Deadline:
    """Calls a function in another thread unless the block ends in time."""

    def __init__(self, seconds: float, late: Callable[[], None]) -> None:
        self._timer = threading.Timer(seconds, late)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


class _WatchedSession(SessionWrapper):
    """A session whose runs are watched, with what they wait for."""

    def __init__(self, inner: Session, sessions: WatchedSessions) -> None:
        super().__init__(inner)
        self._watch = sessions.watch

    def timings(self) -> Timings:
        with self._watch(self.graph.name):
            return super().timings()

    def _run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None, *, keep_on_device: bool
    ) -> Mapping[str, Feed]:
        with self._watch(self.graph.name):
            return super()._run(feeds, outputs, keep_on_device=keep_on_device)
