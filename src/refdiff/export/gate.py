"""Is a written graph still its torch module: run it on what torch was fed, compare, refuse.

error = max |onnx - torch| / (max torch - min torch), per output; the limits are `tolerances.json`, a
committed table that carries the measurement each limit was set from.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol

from refdiff.contracts.closeness import Parity, parity
from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Array
from refdiff.errors import GateError
from refdiff.export.recording import Record


def tolerance(precision: str, graph_name: str) -> float:
    """The committed limit on the relative error of one graph."""
    text = resources.files("refdiff.export").joinpath("tolerances.json").read_text(encoding="utf-8")
    return float(json.loads(text)[precision][graph_name]["limit"])


class Runner(Protocol):
    """A graph that runs; see `refdiff.engines.lean.LeanSession`."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once."""
        ...


OpenGraph = Callable[[Path, int], Runner]
"""Opens a written graph for runs of a batch; see `refdiff.engines.lean.LeanSession`."""


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
            yield name, parity(values, record.results[name])
