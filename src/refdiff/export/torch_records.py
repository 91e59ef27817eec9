"""Record what torch computes on the pipeline's feeds, and compare written graphs with it.

error = max |onnx - torch| / (max torch - min torch), per output. The limits are in `tolerances.json`, a
committed table that holds the measurement each limit was set from.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np

from refdiff.calibration.recording import RecordingSession
from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.parity import Parity, measure_parity
from refdiff.contracts.session import Array, Session, SessionFactory, half_rounded
from refdiff.engines.check_session import CheckSession
from refdiff.errors import GateError
from refdiff.passes.fuse_attention import FuseAttention
from refdiff.passes.round_half import rounded_model

Shapes = tuple[tuple[int, ...], ...]

_LEVELS = 32
"""A signal is recorded in steps of its largest power of two over this: finer ones only make files larger."""

_DISTINCT = 256
"""An array with fewer values is not a signal: masks, timesteps and grids are recorded as they are."""


@dataclass(frozen=True)
class Record:
    """One run of one graph."""

    feeds: Mapping[str, Array]
    results: Mapping[str, Array]

    @property
    def size_bytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(array.nbytes for side in (self.feeds, self.results) for array in side.values())

    def first_row(self) -> Record:
        """Return the record of the batch's first item; every tensor must have the batch as its first axis."""
        feeds, results = (
            {name: array[:1] for name, array in side.items()} for side in (self.feeds, self.results)
        )
        return Record(feeds, results)


class Recorder:
    """A session factory that wraps another and keeps every graph's last run of each shape.

    Feeds are rounded to few half-precision values first: the records compress well, and a half-precision
    graph can be fed exactly the same. `unet_taps` is run as a full pass of `unet`, whose taps are the same;
    the run counts for both graphs.
    """

    def __init__(self, inner: SessionFactory, contract: Mapping[str, GraphSpec]) -> None:
        self._inner = inner
        self._contract = contract
        self._open: dict[str, Session] = {}
        self._records: dict[str, dict[Shapes, Record]] = defaultdict(dict)

    def open(self, name: str) -> Session:
        """Return the recording session of graph `name`."""
        if name not in self._open:
            full = "unet" if name == "unet_taps" else name
            self._open[name] = RecordingSession(
                self._inner.open(full),
                rounding=round_coarsely,
                keep=partial(self._keep, {full, name}),
                graph=self._contract[name],
            )
        return self._open[name]

    def close(self) -> None:
        """Close every session that was opened; the records stay."""
        self._open.clear()
        self._inner.close()

    def records(self, name: str) -> tuple[Record, ...]:
        """Return the runs of a graph, one of each shape; empty if it never ran."""
        return tuple(self._records[name].values())

    def _keep(self, names: Collection[str], feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        record = Record(feeds, results)
        for name in names:
            self._records[name][tuple(array.shape for array in feeds.values())] = record


def round_coarsely(array: Array) -> Array:
    """Round an array to half-precision values, and a float32 signal to few of them.

    Args:
        array: of any shape and type.

    Returns:
        A copy with the same shape and dtype. A signal, which has many distinct values, is in steps of 1/32 of
        the largest power of two in it.
    """
    exact = half_rounded(array)
    if array.dtype != np.float32 or len(np.unique(exact)) < _DISTINCT:
        return exact
    _, exponent = np.frexp(np.abs(exact).max())
    step = np.float32(np.ldexp(1.0, int(exponent) - 1) / _LEVELS)
    return half_rounded(np.round(exact / step) * step)


def error_limit(graph_name: str, precision: str = "fp32") -> float:
    """Return the committed limit on the relative error of one graph."""
    text = resources.files("refdiff.export").joinpath("tolerances.json").read_text(encoding="utf-8")
    return float(json.loads(text)[precision][graph_name]["limit"])


def check_graph(
    path: Path, graph: GraphSpec, records: Sequence[Record], *, limit: float
) -> dict[str, Parity]:
    """Run a written graph in ONNX Runtime and compare it with what torch computed.

    Returns:
        Output -> how close it comes, the worst of all records.

    Raises:
        GateError: an output's error is above `limit`.
    """
    worst: dict[str, Parity] = {}
    by_batch: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_batch[len(next(iter(record.feeds.values())))].append(record)
    for batch, runs in by_batch.items():
        model = rounded_model(path, fuse=FuseAttention(batch=batch))
        session = CheckSession(model, folder=path.parent)
        for name, measured in _compare(session, graph, runs):
            worst[name] = worst.get(name, measured).worse(measured)
    for name, measured in worst.items():
        if not measured.error <= limit:
            raise GateError(
                f"{graph.name}: output {name} of the exported graph is {measured.error:.2e} of its range "
                f"away from torch, allowed is {limit:.0e}; nothing was written"
            )
    return worst


def _compare(
    session: CheckSession, graph: GraphSpec, records: Sequence[Record]
) -> Iterator[tuple[str, Parity]]:
    """Yield output and parity, record by record."""
    for record in records:
        for name, values in session.run(record.feeds, graph.output_names).items():
            yield name, measure_parity(values, record.results[name])
