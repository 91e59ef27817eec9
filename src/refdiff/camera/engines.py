"""A bundle's graphs for one thread that answers key frames and can be interrupted between two graphs.

In: a bundle. Out: segmenters whose every graph run is preceded by a call of `gap`, where the caller may raise
`CancelledError` or run other work on the same engines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.contracts.session import Feed, Session, Timings
from refdiff.engines.factory import BackendSessions
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime.pipeline import Segmenter

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


class _GapSession:
    """A session that calls the gap before it runs."""

    def __init__(self, session: Session, sessions: GapSessions) -> None:
        self._session = session
        self._sessions = sessions

    @property
    def graph(self) -> GraphSpec:
        return self._session.graph

    @property
    def max_batch(self) -> int | None:
        return self._session.max_batch

    def run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, keep_on_device: bool = False
    ) -> Any:
        """Run once, after the gap."""
        name = self.graph.name
        if name == ENCODER and self._sessions.shared is not None:
            return self._sessions.shared
        self._sessions.gap(name)
        if name != ENCODER:
            return self._session.run(feeds, outputs, keep_on_device=keep_on_device)
        started = time.perf_counter()
        found = self._session.run(feeds, outputs)
        self._sessions.note_encoded(found, time.perf_counter() - started)
        return found

    def timings(self) -> Timings:
        return self._session.timings()

    def close(self) -> None:
        self._session.close()


def spare_threads() -> int:
    """Return the number of cores but one, and at least 1."""
    return max(1, (os.cpu_count() or 1) - 1)


class Engines:
    """The engines of one bundle, opened once, and segmenters of any options on them.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        options: what is computed at first; also says which bundles are accepted.
        backend: where and how the graphs run; without a number of threads, one core is left to what follows
            the masks.
        gap: called before each run of a graph.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: an unknown option, or random weights that are not allowed.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a TensorRT back-end was asked for, and the bundle has no plan that fits.
    """

    def __init__(self, bundle: Path | str, options: RunOptions, backend: BackendOptions, gap: Gap) -> None:
        self._bundle = find_bundle(bundle, expect=options.expect)
        check_trained(self._bundle, allow_random_weights=options.allow_random_weights)
        backend = replace(backend, threads=backend.threads or spare_threads())
        self.sessions = GapSessions(open_backend(self._bundle, backend), gap)
        self._segmenters: dict[str, Segmenter] = {}

    def segmenter(self, options: RunOptions) -> Segmenter:
        """Return the segmenter of these options, built at its first use on the engines that are open.

        Raises:
            InputError: an unknown option.
        """
        wanted = options.pipeline_options(self._bundle.spec)
        if repr(wanted) not in self._segmenters:
            self._segmenters[repr(wanted)] = segmenter_of(self._bundle, self.sessions, wanted)
        return self._segmenters[repr(wanted)]

    def close(self) -> None:
        """Close the sessions; calling it twice is fine."""
        self.sessions.close()
