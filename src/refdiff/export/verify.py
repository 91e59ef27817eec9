"""Keeping what the pipeline really feeds its graphs, and what torch answers: the measure of an export.

Is a written graph still its torch module: run it on what torch was fed, compare, refuse.

error = max |onnx - torch| / (max torch - min torch), per output; the limits are `tolerances.json`, a
committed table that carries the measurement each limit was set from.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np

from refdiff.contracts.feeds import feeds_to_host, half_rounded, read_rows, wanted_outputs
from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.parity import Parity, measure_parity
from refdiff.contracts.session import Array, Feed, Session, SessionFactory, Timings
from refdiff.errors import GateError

Shapes = tuple[tuple[int, ...], ...]

_LEVELS = 32
"""A signal is recorded in steps of its largest power of two over this: finer ones only fill the file."""

_DISTINCT = 256
"""What has fewer values is no signal: masks, timesteps and grids are recorded as they are."""


@dataclass(frozen=True)
class Record:
    """One run of one graph."""

    feeds: Mapping[str, Array]
    results: Mapping[str, Array]

    @property
    def size_bytes(self) -> int:
        """Of all its arrays."""
        return sum(array.nbytes for side in (self.feeds, self.results) for array in side.values())

    def first_row(self) -> Record:
        """The same of one item of the batch, where all tensors have it first and no item sees another."""
        feeds, results = (
            {name: array[:1] for name, array in side.items()} for side in (self.feeds, self.results)
        )
        return Record(feeds, results)


class RecordingSession:
    """A session that remembers the last run of each shape.

    Feeds are rounded to few half-precision values first: the record compresses, and a half-precision graph
    can be fed exactly the same.
    """

    def __init__(self, graph: GraphSpec, inner: Session, stores: Sequence[dict[Shapes, Record]]) -> None:
        self._graph = graph
        self._inner = inner
        self._stores = stores

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._graph

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
        """Run the inner session for all its outputs, and keep the run."""
        wanted = wanted_outputs(self._graph, outputs)
        rounded = {
            name: coarse(array) for name, array in read_rows(self._graph, feeds_to_host(feeds)).items()
        }
        results = self._inner.run(rounded)
        shapes, record = tuple(array.shape for array in rounded.values()), Record(rounded, results)
        for store in self._stores:
            store[shapes] = record
        return {name: results[name] for name in wanted}

    def timings(self) -> Timings:
        """See `refdiff.contracts.session.Session`."""
        return self._inner.timings()

    def close(self) -> None:
        """Close the inner session; the record stays."""
        self._inner.close()


class Recorder:
    """A session factory that wraps another and keeps every graph's last run of each shape.

    A run of `unet_taps` is made as a full pass, whose taps are the same, and counts for both graphs.
    """

    def __init__(self, inner: SessionFactory, contract: Mapping[str, GraphSpec]) -> None:
        self._inner = inner
        self._contract = contract
        self._open: dict[str, RecordingSession] = {}
        self._stores: dict[str, dict[Shapes, Record]] = {}

    def open(self, name: str) -> Session:
        """The recording session of graph `name`."""
        if name not in self._open:
            full = "unet" if name == "unet_taps" else name
            stores = [self._stores.setdefault(each, {}) for each in dict.fromkeys((full, name))]
            self._open[name] = RecordingSession(self._contract[name], self._inner.open(full), stores)
        return self._open[name]

    def close(self) -> None:
        """Close every session that was opened; the record stays."""
        self._open.clear()
        self._inner.close()

    def records(self, name: str) -> tuple[Record, ...]:
        """The runs of a graph, one of each shape; empty where it never ran."""
        return tuple(self._stores.get(name, {}).values())


def coarse(array: Array) -> Array:
    """A copy at half-precision values; of a float32 signal, at few of them.

    Args:
        array: of any shape and type.

    Returns:
        The same shape and dtype; a signal, which has many distinct values, in steps of 1/32 of the largest
        power of two in it.
    """
    exact = half_rounded(array)
    if array.dtype != np.float32 or len(np.unique(exact)) < _DISTINCT:
        return exact
    _, exponent = np.frexp(np.abs(exact).max())
    step = np.float32(np.ldexp(1.0, int(exponent) - 1) / _LEVELS)
    return half_rounded(np.round(exact / step) * step)


def tolerance(precision: str, graph_name: str) -> float:
    """The committed limit on the relative error of one graph."""
    text = resources.files("refdiff.export").joinpath("tolerances.json").read_text(encoding="utf-8")
    return float(json.loads(text)[precision][graph_name]["limit"])


class Runner(Protocol):
    """A graph that runs; see `refdiff.engines.ort.CheckSession`."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once."""
        ...


OpenGraph = Callable[[Path, int], Runner]
"""Opens a written graph for runs of a batch; see `refdiff.engines.ort.CheckSession`."""


def check_graph(
    path: Path, graph: GraphSpec, records: Sequence[Record], *, limit: float, open_graph: OpenGraph
) -> dict[str, Parity]:
    """Run the written graph and compare it with what torch computed.

    Returns:
        Output -> how close it came, the worst of all records.

    Raises:
        GateError: an output is farther from torch than `limit`.
    """
    worst: dict[str, Parity] = {}
    by_batch: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_batch[len(next(iter(record.feeds.values())))].append(record)
    for batch, runs in by_batch.items():
        for name, measured in _compare(open_graph(path, batch), graph, runs):
            worst[name] = worst.get(name, measured).worse(measured)
    for name, measured in worst.items():
        if not measured.error <= limit:
            raise GateError(
                f"{graph.name}: output {name} of the exported graph is {measured.error:.2e} of its range "
                f"away from torch, allowed is {limit:.0e}; nothing was written"
            )
    return worst


def _compare(session: Runner, graph: GraphSpec, records: Sequence[Record]) -> Iterator[tuple[str, Parity]]:
    """Output and closeness, record by record."""
    for record in records:
        for name, values in session.run(record.feeds, graph.output_names).items():
            yield name, measure_parity(values, record.results[name])
