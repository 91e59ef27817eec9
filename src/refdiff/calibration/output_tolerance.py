"""Check whether a converted graph is inside its tolerance with some nodes kept exact; used by `bisect`.

In: an fp32 graph, a recipe that breaks it, feeds, a tolerance. Out: inside or not. An exact node is in single
precision in a half-precision recipe, and in half precision in an eight-bit recipe.

The fp32 regions of a recipe are closed: nodes enclosed by them join. A trial keeps exact only the nodes it is
about. Otherwise a search could name the neighbours of a node instead of the node, since they enclose it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from refdiff.accuracy.tolerances import GraphTolerance
from refdiff.calibration.dynamic_range import TYPE_RANGES, is_single, measure_dynamic_range
from refdiff.calibration.fp32_proposals import NonFinite, find_non_finite
from refdiff.calibration.ranges import check_feeds_exist
from refdiff.calibration.simulation import Deviation, simulate
from refdiff.contracts.parity import measure_parity
from refdiff.contracts.recipe import GraphRecipe, Rule, half_weight_nodes, match_nodes, match_rules
from refdiff.contracts.session import Array
from refdiff.engines.intermediate_tensors import Probe, probe
from refdiff.passes.convert import load_converted
from refdiff.passes.graph_files import load_graph
from refdiff.passes.half_precision import HalfPrecision
from refdiff.passes.keep_fp32 import MOVES, close_regions

_MOST_ROUNDS = 3
"""Rounds of looking for the first wrong tensor before the search goes on without a guess."""

Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class Outcome:
    """One output of one trial, compared with fp32."""

    output: str
    error: float
    correlation: float
    inside: bool

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; an error that is not finite is null, since JSON has no infinity."""
        error = self.error if math.isfinite(self.error) else None
        return {**dataclasses.asdict(self), "error": error}


class OutputTolerance:
    """Runs one graph in trial conversions and compares its outputs with the fp32 graph's.

    Args:
        path: an fp32 graph.
        recipe: how it is converted.
        feeds: one mapping per run.
        tolerance: limits of its outputs' errors.
        probe: reads tensors, as `refdiff.engines.intermediate_tensors.probe`.

    Raises:
        InputError: there are no feeds, or the recipe does not fit the graph.
        EngineError: the graph cannot be run.
    """

    def __init__(
        self,
        path: Path,
        recipe: GraphRecipe,
        feeds: Sequence[Tensors],
        tolerance: GraphTolerance,
        *,
        probe: Probe = probe,
    ) -> None:
        check_feeds_exist(path, feeds)
        self._path = path
        self._recipe = recipe
        self._feeds = list(feeds)
        self._tolerance = tolerance
        self._probe = probe
        self._graph = load_graph(path).graph
        self._names = frozenset(node.name or "" for node in self._graph)
        self._outputs = tuple(str(value.name) for value in self._graph.outputs)
        self.exact: list[dict[str, Array]] = [{} for _ in self._feeds]
        """The fp32 graph's outputs for each run."""
        for index, name, values in probe(path, self._feeds, self._outputs):
            self.exact[index][name] = values

    @property
    def candidates(self) -> tuple[str, ...]:
        """Nodes that the recipe does not keep exact and a trial may, in the graph's order."""
        if self._recipe.quantized is None:
            candidates = frozenset(node.name or "" for node in self._graph if _computes(node))
        else:
            candidates = self._match(self._recipe.quantized.nodes)
            candidates -= match_rules(self._recipe.excluded, self._names, where=self._path.stem)
        candidates -= self._fp32_nodes()
        return tuple(node.name for node in self._graph if node.name in candidates and node.name)

    def recipe(self, nodes: Collection[str], *, because: str = "on trial") -> GraphRecipe:
        """Return the recipe with these nodes kept exact as well.

        All readers of a smoothed tensor are kept exact, or none: it is divided for all of them.
        """
        if not nodes:
            return self._recipe
        kept = {*nodes, *self._co_readers(nodes)}
        rule = Rule(
            nodes=tuple(str(node.name) for node in self._graph if node.name in kept),
            because=because,
            origin="bisect",
        )
        if self._recipe.quantized is None:
            return dataclasses.replace(self._recipe, fp32=(*self._recipe.fp32, rule))
        return dataclasses.replace(self._recipe, excluded=(*self._recipe.excluded, rule))

    def inside(self, nodes: Collection[str]) -> bool:
        """Return whether all outputs on all feeds are inside with exactly these nodes kept exact.

        Stops at the first output outside.
        """
        return all(outcome.inside for _, outcome in self._run(self._trial_model(nodes)))

    def worst(self, nodes: Collection[str]) -> Outcome:
        """Return the worst output of all feeds, by the recipe for these nodes.

        Later trials begin with its feed.
        """
        model = load_converted(self._path, self.recipe(nodes), weights="cast")
        outcomes = list(self._run(model))
        worst = max(outcomes, key=lambda pair: (not pair[1].inside, pair[1].error))
        self._feeds.insert(0, self._feeds.pop(worst[0]))
        self.exact.insert(0, self.exact.pop(worst[0]))
        return worst[1]

    def find_non_finite(self) -> tuple[NonFinite, ...]:
        """Find where NaN or infinity begins in the fp32 graph itself, on these feeds."""
        measured = measure_dynamic_range(self._path, self._feeds, self._recipe.half)
        return find_non_finite(self._graph, measured)

    def guess(self) -> tuple[tuple[str, ...], Deviation | None]:
        """Return nodes that may suffice, in the graph's order, and the first tensor that goes wrong.

        Each round, on the worst feed, adds the nodes around the first tensor that is off and around every
        tensor beyond the type's largest value.
        """
        candidates, first = self.candidates, None
        guessed = frozenset[str]()
        for _ in range(_MOST_ROUNDS):
            tensors = simulate(self._path, self.recipe(guessed), self._feeds[:1])
            off = [each for each in tensors if each.off(self._tolerance.error)]
            if not off:
                break
            first = first or off[0]
            largest = TYPE_RANGES[self._recipe.half].largest
            wrong = {off[0].tensor, *(each.tensor for each in tensors if each.largest > largest)}
            found = self._nodes_around(wrong) & set(candidates)
            if found <= guessed:
                break
            guessed |= found
        return tuple(node for node in candidates if node in guessed), first

    def _co_readers(self, nodes: Collection[str]) -> Iterator[str]:
        """Yield all readers of the smoothed tensors that these nodes read."""
        smoothed = () if self._recipe.quantized is None else self._recipe.quantized.smoothing
        for value in (value for node in self._graph for value in node.outputs if value.name in smoothed):
            readers = [use.node.name or "" for use in value.uses()]
            if any(reader in nodes for reader in readers):
                yield from readers

    def _trial_model(self, nodes: Collection[str]) -> ir.Model:
        """Return the graph converted with exactly these nodes kept exact."""
        if self._recipe.quantized is not None:
            return load_converted(self._path, self.recipe(nodes), weights="cast")
        wanted = {*self._fp32_nodes(), *nodes}
        moves = {node.name for node in self._graph if node.op_type in MOVES}
        kept = close_regions(self._graph, wanted) & (wanted | moves)
        cast = half_weight_nodes(self._recipe, self._names, where=self._path.stem).difference(nodes)
        half = HalfPrecision(self._recipe.half, kept, half_weights=cast, weights="cast")
        return half(load_graph(self._path))

    def _match(self, patterns: Collection[str]) -> frozenset[str]:
        return match_nodes(patterns, self._names, where=self._path.stem)

    def _fp32_nodes(self) -> frozenset[str]:
        """Return the nodes in the fp32 regions of the recipe."""
        named = match_rules(self._recipe.single, self._names, where=self._path.stem)
        return close_regions(self._graph, named)

    def _run(self, model: ir.Model) -> Iterator[tuple[int, Outcome]]:
        """Yield the index of a feed and one output's outcome on it."""
        for index, name, got in self._probe(model, self._feeds, self._outputs, folder=self._path.parent):
            close = measure_parity(got, self.exact[index][name])
            inside = close.error <= self._tolerance.error and close.correlation >= self._tolerance.correlation
            yield index, Outcome(name, close.error, close.correlation, inside)

    def _nodes_around(self, tensors: Collection[str]) -> set[str]:
        """Return the nodes that make and read tensors, and the makers of the makers' inputs."""
        found = set[str]()
        for node in self._graph:
            made = any(value.name in tensors for value in node.outputs)
            if made:
                sources = (value.producer() for value in node.inputs if value is not None)
                found |= {source.name or "" for source in sources if source is not None}
            if made or any(value is not None and value.name in tensors for value in node.inputs):
                found.add(node.name or "")
        return found


def _computes(node: ir.Node) -> bool:
    return node.op_type != "Constant" and any(is_single(value) for value in node.outputs)
