"""Keeping what the pipeline really feeds its graphs: the export's examples, and later the golden record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Array, Session, SessionFactory

Feeds = dict[str, Array]
Shapes = tuple[tuple[int, ...], ...]

_SAME_INPUTS = {"unet": "unet_taps", "unet_taps": "unet"}
"""Graphs that take the same feeds: a profile that runs only one of them has recorded both."""


class RecordingSession:
    """A session that remembers the last feeds of each shape."""

    def __init__(self, inner: Session, feeds: dict[Shapes, Feeds]) -> None:
        self._inner = inner
        self._feeds = feeds

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._inner.graph

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the inner session, and keep a copy of the feeds it accepted."""
        results = self._inner.run(feeds, outputs)
        shapes = tuple(array.shape for array in feeds.values())
        self._feeds.pop(shapes, None)  # so that the newest comes last
        self._feeds[shapes] = {name: np.array(array) for name, array in feeds.items()}
        return results

    def close(self) -> None:
        """Close the inner session; the record stays."""
        self._inner.close()


class Recorder:
    """A session factory that wraps another and keeps every graph's last feeds of each shape."""

    def __init__(self, inner: SessionFactory) -> None:
        self._inner = inner
        self._open: dict[str, RecordingSession] = {}
        self._feeds: dict[str, dict[Shapes, Feeds]] = {}

    def open(self, name: str) -> Session:
        """The recording session of graph `name`."""
        if name not in self._open:
            self._open[name] = RecordingSession(self._inner.open(name), self._feeds.setdefault(name, {}))
        return self._open[name]

    def close(self) -> None:
        """Close every session that was opened; the record stays."""
        self._open.clear()
        self._inner.close()

    def examples(self) -> dict[str, tuple[Feeds, ...]]:
        """Graph -> its feeds, one of each shape, the newest last.

        Each of `unet` and `unet_taps` stands in for the other where only one ran.
        """
        examples = {name: tuple(feeds.values()) for name, feeds in self._feeds.items() if feeds}
        for name, twin in _SAME_INPUTS.items():
            if name not in examples and twin in examples:
                examples[name] = examples[twin]
        return examples
