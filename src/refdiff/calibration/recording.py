"""Sessions that record their feeds while the pipeline runs as usual.

Feeds are rounded to half-precision values before each run: the record takes half the bytes, a half-precision
graph can be fed exactly the same, and later feeds are computed from the recorded ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from refdiff.calibration.feeds import Run
from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import (
    Array,
    Feed,
    Session,
    SessionFactory,
    SessionWrapper,
    feeds_to_host,
    half_rounded,
    read_rows,
    wanted_outputs,
)


class FeedRecorder:
    """A session factory that wraps another and records every run.

    Args:
        inner: opens the sessions that compute; closed with the recorder.
        most: largest number of runs of one graph that `take` returns, evenly spread over all; None: all.
            Four keep every pass of the UNet in a variant, and a quarter of the 16 decoder runs that SAM's
            grid of 32 points a side takes per image.
    """

    def __init__(self, inner: SessionFactory, *, most: int | None = None) -> None:
        self._inner = inner
        self._most = most
        self._open: dict[str, Session] = {}
        self._runs: list[Run] = []
        self._held: dict[str, Array] = {}

    def open(self, name: str) -> Session:
        """Return the recording session of graph `name`."""
        if name not in self._open:
            keep = partial(self.keep, name)
            self._open[name] = RecordingSession(self._inner.open(name), rounding=half_rounded, keep=keep)
        return self._open[name]

    def close(self) -> None:
        """Close every session that was opened, and drop the runs."""
        self._open.clear()
        self._drop()
        self._inner.close()

    def take(self) -> tuple[Run, ...]:
        """Return the runs since the last call, in order, at most `most` of each graph."""
        counts = Counter(run.graph for run in self._runs)
        chosen = {graph: spread_evenly(count, self._most) for graph, count in counts.items()}
        taken = tuple(run for run in self._runs if run.position in chosen[run.graph])
        self._drop()
        return taken

    def keep(self, graph: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:  # noqa: ARG002
        """Record the feeds of one run; equal arrays of several runs are held once."""
        position = sum(run.graph == graph for run in self._runs)
        held = {name: self._share(array) for name, array in feeds.items()}
        self._runs.append(Run(graph=graph, position=position, feeds=held))

    def _share(self, array: Array) -> Array:
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
        return self._held.setdefault(digest.hexdigest(), array)

    def _drop(self) -> None:
        self._runs.clear()
        self._held.clear()


def spread_evenly(count: int, most: int | None) -> frozenset[int]:
    """Return at most `most` of the positions 0..count-1, evenly spaced with both ends; one is the middle."""
    if most is None or count <= most:
        return frozenset(range(count))
    if most == 1:
        return frozenset({count // 2})
    return frozenset(round(step * (count - 1) / (most - 1)) for step in range(most))


class RecordingSession(SessionWrapper):
    """A session that rounds its feeds and hands over each successful run.

    Args:
        inner: computes.
        rounding: applied to every array that is fed.
        keep: receives the rounded feeds and the results of a run.
        graph: the contract, if it is a part of the inner session's; then all outputs are computed and kept.
    """

    def __init__(
        self,
        inner: Session,
        *,
        rounding: Callable[[Array], Array],
        keep: Callable[[dict[str, Array], dict[str, Array]], None],
        graph: GraphSpec | None = None,
    ) -> None:
        super().__init__(inner)
        self._rounding = rounding
        self._keep = keep
        self._graph = graph

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._graph or self._inner.graph

    def _run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None,
        *,
        keep_on_device: bool,  # noqa: ARG002 - a record holds host arrays
    ) -> dict[str, Array]:
        """Run the inner session on rounded feeds, and hand the run over."""
        arrays = read_rows(self.graph, feeds_to_host(feeds))
        rounded = {name: self._rounding(array) for name, array in arrays.items()}
        results = self._inner.run(rounded, outputs if self._graph is None else None)
        self._keep(rounded, results)
        if self._graph is None:
            return results
        return {name: results[name] for name in wanted_outputs(self._graph, outputs)}
