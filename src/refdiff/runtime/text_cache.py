"""Run the text graphs once per text: their outputs depend on token ids alone.

In: a session factory. Out: the same one, whose `sd_text` and `clip_text` return the outputs of rows they have
run before from memory. Rows of a batch are independent: each is cached by itself, and only new ones are run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np

from refdiff.contracts.session import (
    Array,
    Feed,
    Session,
    SessionFactory,
    SessionWrapper,
    check_feeds,
    feeds_to_host,
    wanted_outputs,
)

TEXT_GRAPHS = ("sd_text", "clip_text")
"""Graphs whose every input and output has the batch first."""

MOST_ROWS = 256
"""Texts cached for each graph, least recently used out first: at full size 60 MB of `sd_text`'s states."""


class CachedTextSessions:
    """A session factory that caches the outputs of its text graphs.

    Args:
        inner: opens the sessions; closed with this one.
        most: texts cached for each graph.
    """

    def __init__(self, inner: SessionFactory, *, most: int = MOST_ROWS) -> None:
        self._inner = inner
        self._most = most
        self._kept: dict[str, _CachedSession] = {}

    def open(self, name: str) -> Session:
        """Return the session of graph `name`."""
        session = self._inner.open(name)
        if name not in TEXT_GRAPHS:
            return session
        kept = self._kept.setdefault(name, _CachedSession(session, self._most))
        kept.reopen(session)  # a factory may have replaced one that failed
        return kept

    def close(self) -> None:
        """Close every session and empty the cache."""
        self._kept.clear()
        self._inner.close()


class _CachedSession(SessionWrapper):
    """A session that runs only rows it has not cached; several threads may use it."""

    def __init__(self, inner: Session, most: int) -> None:
        super().__init__(inner)
        self._most = most
        self._rows: OrderedDict[bytes, dict[str, Array]] = OrderedDict()
        self._lock = Lock()

    def reopen(self, inner: Session) -> None:
        """Run new rows on another session of the same graph."""
        self._inner = inner

    def _run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None,
        *,
        keep_on_device: bool,  # noqa: ARG002 - the cache is on the host
    ) -> dict[str, Array]:
        """Return cached rows from memory, and run the others as one batch."""
        check_feeds(self.graph, feeds)
        wanted = wanted_outputs(self.graph, outputs)
        host = feeds_to_host(feeds)
        columns = [np.ascontiguousarray(host[name]) for name in self.graph.input_names]
        keys = [b"".join(column[i].tobytes() for column in columns) for i in range(len(columns[0]))]
        known = self._known(keys)
        new = [keys.index(key) for key in dict.fromkeys(keys) if key not in known]
        if new:
            answers = self._inner.run({name: host[name][new] for name in self.graph.input_names})
            fresh = {
                keys[i]: {name: rows[at].copy() for name, rows in answers.items()} for at, i in enumerate(new)
            }
            known |= fresh
            self._keep(fresh)
        return {name: np.stack([known[key][name] for key in keys]) for name in wanted}

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, dict[str, Array]]:
        with self._lock:
            known = {key: self._rows[key] for key in keys if key in self._rows}
            for key in known:
                self._rows.move_to_end(key)
        return known

    def _keep(self, fresh: Mapping[bytes, dict[str, Array]]) -> None:
        with self._lock:
            self._rows.update(fresh)
            while len(self._rows) > self._most:
                self._rows.popitem(last=False)
