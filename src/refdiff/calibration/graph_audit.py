"""Whether the ranges of a recipe fit what its tensors reach.

In: an fp32 graph, its recipe, feeds, a function that looks inside. Out: the ranges that do not fit: one that
is too small cuts values off, one that is too large leaves them few levels.

The audit of one graph: what fewer bits cannot hold of it, and the recipe that mends that.

In: an fp32 graph, the recipe it shall be converted by, feeds, a function that looks inside. Out: a
`GraphAudit`. First the tensors are measured in fp32, and whatever is out of reach is proposed for single
precision; then the graph is run as the recipe and the proposals say, and what still is lost is proposed too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from refdiff.calibration.dynamic_range import REACHES, Headroom, headroom
from refdiff.calibration.fp32_proposals import (
    MARGIN,
    Broken,
    Finding,
    broken,
    findings,
    lost_in_trial,
    proposed,
)
from refdiff.calibration.probing import Probe
from refdiff.calibration.ranges import collect
from refdiff.calibration.simulation import Deviation, simulated
from refdiff.contracts.recipe import GraphRecipe, Quantized, Rule, half_weight_nodes, match_nodes, match_rules
from refdiff.contracts.session import Array
from refdiff.errors import InputError
from refdiff.passes.keep_fp32 import closed

CUT_OFF = 8.0
"""Times its range that a tensor may reach: methods cut rare values off (the miniature, entropy: 4.3 times;
one of the UNet 9.7 times, and that range alone takes its output from 0.07 to 0.17 of its range off)."""

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
    quantised: Quantized,
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
    names = match_nodes(quantised.nodes, known, where=path.stem) - match_rules(left, known, where=path.stem)
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


_MOST_TRIALS = 3
"""Each mends what the one before it lost; what is lost after the last is told."""

_SHOWN = 8
"""Tensors nearest to the end of the type that a document lists."""


@dataclass(frozen=True, kw_only=True)
class GraphAudit:
    """What was found in one graph."""

    graph: str
    recipe: GraphRecipe
    """The one that was audited, and the proposals."""
    runs: int
    """Feeds it was run on."""
    tensors: tuple[Headroom, ...]
    """Every float tensor, in the graph's order."""
    broken: tuple[Broken, ...]
    """Where NaN or infinity begins in fp32; nothing is proposed then."""
    findings: tuple[Finding, ...]
    bad_ranges: tuple[BadRange, ...]
    proposed: tuple[Rule, ...]
    lost: tuple[str, ...]
    """Nodes that lose finite values in spite of all proposals."""
    deviations: tuple[Deviation, ...]
    """Every tensor in half precision, proposals included, beside fp32; none where the graph is broken."""

    @property
    def nearest(self) -> Headroom:
        """The tensor whose largest magnitude is nearest to the end of the type."""
        return max(self.tensors, key=lambda each: each.largest)

    @property
    def room(self) -> float:
        """How many times larger the nearest tensor could be; infinite where all are zero."""
        largest = self.nearest.largest
        return REACHES[self.recipe.half].largest / largest if largest else float("inf")

    @property
    def complaints(self) -> tuple[str, ...]:
        """What no recipe of ours mends, one line each."""
        return (
            *(f"{self.graph}: {each}" for each in self.broken),
            *(f"{self.graph}: {each}" for each in self.bad_ranges),
            *(f"{self.graph}: {node} still loses values in {self.recipe.half}" for node in self.lost),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; of the tensors those nearest to the end of the type."""
        nearest = sorted(self.tensors, key=lambda each: -each.largest)[:_SHOWN]
        return {
            "graph": self.graph,
            "half": self.recipe.half,
            "runs": self.runs,
            "tensors": len(self.tensors),
            "nearest": [each.to_json() for each in nearest],
            "broken": [each.to_json() for each in self.broken],
            "findings": [each.to_json() for each in self.findings],
            "bad_ranges": [each.to_json() for each in self.bad_ranges],
            "proposed": [dataclasses.asdict(rule) for rule in self.proposed],
            "lost": list(self.lost),
            "largest_error": max((each.error for each in self.deviations), default=None),
        }


def audit_graph(
    probe: Probe,
    path: Path,
    recipe: GraphRecipe,
    feeds: Sequence[Mapping[str, Array]],
    *,
    margin: float = MARGIN,
) -> GraphAudit:
    """Audit one graph.

    Args:
        probe: runs graphs.
        path: an fp32 graph.
        recipe: how it shall be converted.
        feeds: one mapping for each run.
        margin: from a tensor's largest magnitude to the end of the type.

    Raises:
        InputError: there are no feeds, or the recipe does not fit the graph.
        EngineError: the graph cannot be run.
    """
    if not feeds:
        raise InputError(f"{path.stem} was never run in the recorded feeds; record them in mode full")
    graph = ir.load(path).graph
    measured = headroom(probe, path, feeds, recipe.half)
    sick = broken(graph, measured)
    result = GraphAudit(
        graph=path.stem,
        recipe=recipe,
        runs=len(feeds),
        tensors=measured,
        broken=sick,
        findings=(),
        bad_ranges=(),
        proposed=(),
        lost=(),
        deviations=(),
    )
    if sick:
        return result
    found = findings(
        graph,
        measured,
        recipe.half,
        islands=_islands(graph, recipe),
        half_weights=half_weight_nodes(recipe, _names(graph), where=str(graph.name)),
        margin=margin,
    )
    bad: tuple[BadRange, ...] = ()
    if recipe.quantized is not None:
        left = (*recipe.excluded, *recipe.single, *recipe.quantized.weights_alone)
        bad = bad_ranges(probe, path, recipe.quantized, feeds, left=left)
    result = _with(result, graph, found)
    return _after_trials(probe, path, dataclasses.replace(result, bad_ranges=bad), graph, feeds)


def _after_trials(
    probe: Probe, path: Path, audit: GraphAudit, graph: ir.Graph, feeds: Sequence[Mapping[str, Array]]
) -> GraphAudit:
    """The audit, completed by what is lost when the graph is run in half precision."""
    for trial in range(_MOST_TRIALS):
        half = dataclasses.replace(audit.recipe, quantized=None)
        tensors = simulated(probe, path, half, feeds)
        lost = lost_in_trial(graph, tensors, islands=_islands(graph, half))
        audit = dataclasses.replace(audit, deviations=tensors, lost=tuple(each.node for each in lost))
        if trial == _MOST_TRIALS - 1 or all(each.covered for each in lost):
            break
        audit = _with(audit, graph, lost)
    return audit


def _with(audit: GraphAudit, graph: ir.Graph, found: Sequence[Finding]) -> GraphAudit:
    """The audit with more findings, and what they propose in its recipe."""
    rules = proposed(graph, found, audit.recipe.half)
    return dataclasses.replace(
        audit,
        findings=(*audit.findings, *found),
        proposed=(*audit.proposed, *rules),
        recipe=dataclasses.replace(audit.recipe, fp32=(*audit.recipe.fp32, *rules)),
    )


def _islands(graph: ir.Graph, recipe: GraphRecipe) -> frozenset[str]:
    return closed(graph, match_rules(recipe.single, _names(graph), where=str(graph.name)))


def _names(graph: ir.Graph) -> frozenset[str]:
    return frozenset(node.name or "" for node in graph)
