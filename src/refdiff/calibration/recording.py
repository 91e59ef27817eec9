"""Sessions that keep what they are fed: the pipeline runs as always, and `FeedRecorder` hands out its runs.

Feeds are rounded to half-precision values before the run: the record takes half the bytes, a half-precision
graph can be fed exactly the same, and what follows is computed from what is recorded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from refdiff.calibration.feeds import Run
from refdiff.contracts.feeds import feeds_to_host, half_rounded, read_rows
from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Array, Feed, Session, SessionFactory, Timings


class FeedRecorder:
    """A session factory that wraps another and remembers every run until it is asked for.

    Args:
        inner: opens the sessions that compute; closed with the recorder.
        most: runs of one graph that are handed out at a time, evenly spread over all there were; None: all.
            Four keep every pass of the UNet that a variant makes, and thin out SAM's decoder, which is run
            16 times on one picture by a grid of 32 points a side.
    """

    def __init__(self, inner: SessionFactory, *, most: int | None = None) -> None:
        self._inner = inner
        self._most = most
        self._open: dict[str, Session] = {}
        self._runs: list[Run] = []
        self._held: dict[str, Array] = {}

    def open(self, name: str) -> Session:
        """The recording session of graph `name`."""
        if name not in self._open:
            self._open[name] = _RecordingSession(name, self._inner.open(name), self)
        return self._open[name]

    def close(self) -> None:
        """Close every session that was opened, and forget the runs."""
        self._open.clear()
        self._forget()
        self._inner.close()

    def take(self) -> tuple[Run, ...]:
        """The runs since the last call, in order, thinned out to `most` of a graph."""
        counts = Counter(run.graph for run in self._runs)
        chosen = {graph: spread(count, self._most) for graph, count in counts.items()}
        taken = tuple(run for run in self._runs if run.position in chosen[run.graph])
        self._forget()
        return taken

    def keep(self, graph: str, feeds: Mapping[str, Array]) -> None:
        """Remember one run; equal arrays of several runs are held once."""
        position = sum(run.graph == graph for run in self._runs)
        held = {name: self._once(array) for name, array in feeds.items()}
        self._runs.append(Run(graph=graph, position=position, feeds=held))

    def _once(self, array: Array) -> Array:
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
        return self._held.setdefault(digest.hexdigest(), array)

    def _forget(self) -> None:
        self._runs.clear()
        self._held.clear()


def spread(count: int, most: int | None) -> frozenset[int]:
    """At most `most` of the positions 0..count-1, first and last included, evenly apart; one: the middle."""
    if most is None or count <= most:
        return frozenset(range(count))
    if most == 1:
        return frozenset({count // 2})
    return frozenset(round(step * (count - 1) / (most - 1)) for step in range(most))


class _RecordingSession:
    """A session that tells the recorder each run that went well."""

    def __init__(self, name: str, inner: Session, recorder: FeedRecorder) -> None:
        self._name = name
        self._inner = inner
        self._recorder = recorder

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._inner.graph

    @property
    def max_batch(self) -> int | None:
        """The inner session's."""
        return self._inner.max_batch

    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: bool = False,  # noqa: ARG002 - a record is of host arrays
    ) -> dict[str, Array]:
        """Run the inner session on rounded feeds, and keep them."""
        rounded = {
            name: half_rounded(array) for name, array in read_rows(self.graph, feeds_to_host(feeds)).items()
        }
        results = self._inner.run(rounded, outputs)
        self._recorder.keep(self._name, rounded)
        return results

    def timings(self) -> Timings:
        """See `refdiff.contracts.session.Session`."""
        return self._inner.timings()

    def close(self) -> None:
        """Close the inner session."""
        self._inner.close()
