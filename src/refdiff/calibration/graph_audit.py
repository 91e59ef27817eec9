"""Audit one graph: what half precision or eight bits cannot hold, and the recipe that fixes it.

In: an fp32 graph, the recipe to convert it by, feeds. Out: a `GraphAudit`. First the tensors are measured in
fp32, and what is out of range is proposed for fp32; ranges of eight-bit tensors are compared with what the
tensors reach. Then the graph is run as the recipe and the proposals say, and what is still lost is proposed
too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from refdiff.calibration.dynamic_range import TYPE_RANGES, DynamicRange, measure_dynamic_range
from refdiff.calibration.fp32_proposals import (
    MARGIN,
    NonFinite,
    OutOfRange,
    find_lost_values,
    find_non_finite,
    find_out_of_range,
    propose_rules,
)
from refdiff.calibration.ranges import check_feeds_exist, collect_ranges
from refdiff.calibration.simulation import Deviation, simulate
from refdiff.contracts.recipe import (
    GraphRecipe,
    Quantized,
    Rule,
    half_weight_nodes,
    match_nodes,
    match_rules,
)
from refdiff.contracts.session import Array
from refdiff.passes.graph_files import load_graph
from refdiff.passes.keep_fp32 import close_regions

CUT_OFF = 8.0
"""Multiple of its range that a tensor may reach: methods cut rare values off (miniature, entropy: 4.3 times;
one tensor of the UNet 9.7 times, and that range alone raises its output's error from 0.07 to 0.17)."""

UNUSED = 16.0
"""Multiple of a tensor's largest magnitude that its range may be: feeds may miss the values that the range
was taken from (miniature: 5.8 times, one image at one step)."""

_MOST_TRIALS = 3
"""Each trial's losses are proposed for the next; those of the last one are reported."""

_SHOWN = 8
"""Number of tensors nearest to the type's limit in the JSON document."""


@dataclass(frozen=True, kw_only=True)
class BadRange:
    """A range of a recipe that does not fit: too small cuts values off, too large leaves few levels."""

    tensor: str
    node: str
    """The node that makes the tensor; for a graph's input, the first quantized node that reads it."""
    nodes: tuple[str, ...]
    """The quantized nodes that read it."""
    range: float
    reached: float
    """Largest magnitude on the feeds."""

    def __str__(self) -> str:
        what = "is cut off" if self.reached > self.range else "has few levels"
        return (
            f"{self.node}: {self.tensor} {what}: its range is {self.range:.4g}, it reaches {self.reached:.4g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        fields = dataclasses.asdict(self)
        reached = fields.pop("reached")
        return {**fields, "largest_magnitude": reached}


@dataclass(frozen=True, kw_only=True)
class GraphAudit:
    """The findings in one graph."""

    graph: str
    recipe: GraphRecipe
    """The audited recipe with the proposals."""
    runs: int
    """Number of feeds."""
    tensors: tuple[DynamicRange, ...]
    """Every float tensor, in the graph's order."""
    broken: tuple[NonFinite, ...] = ()
    """Places where NaN or infinity begins in fp32; if there are any, nothing is proposed."""
    findings: tuple[OutOfRange, ...] = ()
    bad_ranges: tuple[BadRange, ...] = ()
    proposed: tuple[Rule, ...] = ()
    lost: tuple[str, ...] = ()
    """Nodes that lose finite values in spite of all proposals."""
    deviations: tuple[Deviation, ...] = ()
    """Every tensor in half precision, proposals included, against fp32; empty where the graph is broken."""

    @property
    def nearest(self) -> DynamicRange:
        """The tensor whose largest magnitude is nearest to the type's largest value."""
        return max(self.tensors, key=lambda each: each.largest)

    @property
    def room(self) -> float:
        """Factor by which the nearest tensor could grow; infinite where all are zero."""
        largest = self.nearest.largest
        return TYPE_RANGES[self.recipe.half].largest / largest if largest else float("inf")

    @property
    def complaints(self) -> tuple[str, ...]:
        """Problems that no recipe fixes, one line each."""
        return (
            *(f"{self.graph}: {each}" for each in self.broken),
            *(f"{self.graph}: {each}" for each in self.bad_ranges),
            *(f"{self.graph}: {node} still loses values in {self.recipe.half}" for node in self.lost),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; it lists the tensors nearest to the type's limit."""
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
    path: Path, recipe: GraphRecipe, feeds: Sequence[Mapping[str, Array]], *, margin: float = MARGIN
) -> GraphAudit:
    """Audit one graph.

    Args:
        path: an fp32 graph.
        recipe: how it will be converted.
        feeds: one mapping per run.
        margin: from a tensor's largest magnitude to the type's largest value.

    Raises:
        InputError: there are no feeds, or the recipe does not fit the graph.
        EngineError: the graph cannot be run.
    """
    check_feeds_exist(path, feeds)
    graph = load_graph(path).graph
    measured = measure_dynamic_range(path, feeds, recipe.half)
    non_finite = find_non_finite(graph, measured)
    audit = GraphAudit(graph=path.stem, recipe=recipe, runs=len(feeds), tensors=measured)
    if non_finite:
        return dataclasses.replace(audit, broken=non_finite)
    found = find_out_of_range(
        graph,
        measured,
        recipe.half,
        fp32=_fp32_nodes(graph, recipe),
        half_weights=half_weight_nodes(recipe, _names(graph), where=str(graph.name)),
        margin=margin,
    )
    bad: tuple[BadRange, ...] = ()
    if recipe.quantized is not None:
        excluded = (*recipe.excluded, *recipe.single, *recipe.quantized.weights_alone)
        bad = find_bad_ranges(path, recipe.quantized, feeds, excluded=excluded)
    audit = dataclasses.replace(_add_findings(audit, graph, found), bad_ranges=bad)
    return _run_trials(audit, path, graph, feeds)


def find_bad_ranges(
    path: Path,
    quantized: Quantized,
    feeds: Sequence[Mapping[str, Array]],
    *,
    excluded: Iterable[Rule] = (),
) -> tuple[BadRange, ...]:
    """Find the ranges that do not fit, in the graph's order.

    Args:
        path: an fp32 graph.
        quantized: its recipe.
        feeds: one mapping per run.
        excluded: rules for nodes that are not quantized after all; their ranges are not checked.

    Raises:
        InputError: there are no feeds, the recipe names nodes the graph does not have, or a tensor is not
            finite.
    """
    graph, where = load_graph(path).graph, path.stem
    known = _names(graph)
    names = match_nodes(quantized.nodes, known, where=where) - match_rules(excluded, known, where=where)
    readers = dict[str, list[ir.Node]]()
    for node in graph:
        if node.name in names and node.inputs[0] is not None:
            readers.setdefault(str(node.inputs[0].name), []).append(node)
    read = {tensor: nodes for tensor, nodes in readers.items() if tensor in quantized.ranges}
    reached = collect_ranges(path, feeds, tuple(read), method="minmax", smoothing=quantized.smoothing)
    return tuple(
        _bad_range(tensor, nodes, quantized.ranges[tensor], reached[tensor])
        for tensor, nodes in read.items()
        if not _fits(quantized.ranges[tensor], reached[tensor])
    )


def _fits(range_: float, reached: float) -> bool:
    return reached == 0.0 or (reached <= CUT_OFF * range_ and range_ <= UNUSED * reached)


def _bad_range(tensor: str, nodes: Sequence[ir.Node], range_: float, reached: float) -> BadRange:
    value = nodes[0].inputs[0]
    maker = None if value is None else value.producer()
    return BadRange(
        tensor=tensor,
        node=(nodes[0] if maker is None else maker).name or "",
        nodes=tuple(node.name or "" for node in nodes),
        range=range_,
        reached=reached,
    )


def _run_trials(
    audit: GraphAudit, path: Path, graph: ir.Graph, feeds: Sequence[Mapping[str, Array]]
) -> GraphAudit:
    """Run the graph in half precision, and propose fp32 for what is lost, until nothing more is."""
    for trial in range(_MOST_TRIALS):
        half = dataclasses.replace(audit.recipe, quantized=None)
        tensors = simulate(path, half, feeds)
        lost = find_lost_values(graph, tensors, fp32=_fp32_nodes(graph, half))
        audit = dataclasses.replace(audit, deviations=tensors, lost=tuple(each.node for each in lost))
        if trial == _MOST_TRIALS - 1 or all(each.covered for each in lost):
            break
        audit = _add_findings(audit, graph, lost)
    return audit


def _add_findings(audit: GraphAudit, graph: ir.Graph, found: Sequence[OutOfRange]) -> GraphAudit:
    """Add findings to the audit, and the rules they lead to to its recipe."""
    rules = propose_rules(graph, found, audit.recipe.half)
    return dataclasses.replace(
        audit,
        findings=(*audit.findings, *found),
        proposed=(*audit.proposed, *rules),
        recipe=dataclasses.replace(audit.recipe, fp32=(*audit.recipe.fp32, *rules)),
    )


def _fp32_nodes(graph: ir.Graph, recipe: GraphRecipe) -> frozenset[str]:
    return close_regions(graph, match_rules(recipe.single, _names(graph), where=str(graph.name)))


def _names(graph: ir.Graph) -> frozenset[str]:
    return frozenset(node.name or "" for node in graph)
