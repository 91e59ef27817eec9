"""Whether the ranges of a recipe fit what its tensors reach.

In: an fp32 graph, its recipe, feeds, a function that looks inside. Out: the ranges that do not fit: one that
is too small cuts values off, one that is too large leaves them few levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from refdiff.calibration.probing import Probe
from refdiff.calibration.ranges import collect
from refdiff.contracts.recipe import Quantised, Rule, matching, named
from refdiff.contracts.session import Array

CUT_OFF = 8.0
"""Times its range that a tensor may reach: methods cut rare values off (miniature: 3.6 times, entropy)."""

UNUSED = 16.0
"""Times a tensor's largest magnitude that its range may be: feeds may miss what ranges were taken from (the
miniature: 5.8 times, one picture at one step)."""


@dataclass(frozen=True, kw_only=True)
class BadRange:
    """One range of a recipe that does not fit."""

    tensor: str
    node: str
    """Who makes the tensor; of a graph's input, the first quantised node that reads it."""
    nodes: tuple[str, ...]
    """The quantised nodes that read it."""
    range: float
    reached: float
    """Largest magnitude on the feeds."""

    def __str__(self) -> str:
        what = "is cut off" if self.reached > self.range else "has few levels"
        return (
            f"{self.node}: {self.tensor} {what}: its range is {self.range:.4g}, it reaches {self.reached:.4g}"
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "tensor": self.tensor,
            "node": self.node,
            "nodes": list(self.nodes),
            "range": self.range,
            "largest_magnitude": self.reached,
        }


def bad_ranges(
    probe: Probe,
    path: Path,
    quantised: Quantised,
    feeds: Sequence[Mapping[str, Array]],
    *,
    left: Iterable[Rule] = (),
) -> tuple[BadRange, ...]:
    """The ranges that do not fit, in the graph's order.

    Args:
        probe: runs the graph.
        path: an fp32 graph.
        quantised: its recipe.
        feeds: one mapping for each run.
        left: rules for nodes that are not quantised after all: nobody asks for their ranges.

    Raises:
        InputError: there are no feeds, the recipe names nodes the graph does not have, or a tensor is not
            finite.
    """
    graph = ir.load(path).graph
    known = {node.name or "" for node in graph}
    names = matching(quantised.nodes, known, where=path.stem) - named(left, known, where=path.stem)
    readers = dict[str, list[ir.Node]]()
    for node in graph:
        if node.name in names and node.inputs[0] is not None:
            readers.setdefault(str(node.inputs[0].name), []).append(node)
    read = {tensor: nodes for tensor, nodes in readers.items() if tensor in quantised.ranges}
    reached = collect(probe, path, feeds, tuple(read), method="minmax", smoothing=quantised.smoothing)
    return tuple(
        _bad(tensor, nodes, quantised.ranges[tensor], reached[tensor])
        for tensor, nodes in read.items()
        if not _fits(quantised.ranges[tensor], reached[tensor])
    )


def _fits(range_: float, reached: float) -> bool:
    return reached == 0.0 or (reached <= CUT_OFF * range_ and range_ <= UNUSED * reached)


def _bad(tensor: str, nodes: Sequence[ir.Node], range_: float, reached: float) -> BadRange:
    value = nodes[0].inputs[0]
    maker = None if value is None else value.producer()
    return BadRange(
        tensor=tensor,
        node=(nodes[0] if maker is None else maker).name or "",
        nodes=tuple(node.name or "" for node in nodes),
        range=range_,
        reached=reached,
    )
