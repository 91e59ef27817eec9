"""Sessions that call a function before each run of a graph, where work can be interrupted.

The caller may raise `CancelledError` there, or run other work on the same engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from refdiff.contracts.session import Feed, Session, SessionWrapper
from refdiff.engines.factory import BackendSessions

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
