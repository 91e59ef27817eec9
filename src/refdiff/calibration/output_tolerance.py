"""Trials for `bisection`: a graph converted with some nodes kept exact, its outputs beside the fp32 graph's.

In: an fp32 graph, a recipe that breaks it, feeds, a tolerance. Out: inside or not. To be kept exact means
single precision in a half-precision recipe; in one of eight bits it means half precision, out of the eight
bits.

A recipe's islands are closed: who is caught between them joins. A trial keeps exactly the nodes it is about,
or a search would name the neighbours of a node in its place, since they catch it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from refdiff.calibration.dynamic_range import REACHES, headroom, is_single
from refdiff.calibration.fp32_proposals import Broken, broken
from refdiff.calibration.probing import Probe
from refdiff.calibration.simulation import Deviation, simulated
from refdiff.contracts.parity import measure_parity
from refdiff.contracts.recipe import GraphRecipe, Rule, half_weight_nodes, match_nodes, match_rules
from refdiff.contracts.session import Array
from refdiff.errors import InputError
from refdiff.passes.convert import converted_model
from refdiff.passes.half_precision import HalfPrecision
from refdiff.passes.keep_fp32 import MOVES, closed

_MOST_ROUNDS = 3
"""Of asking which tensor goes wrong first, before searching without a guess."""

Tensors = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an output may be from fp32."""

    error: float
    """Of its range."""
    correlation: float
    """At least."""


@dataclass(frozen=True)
class Outcome:
    """One output of one trial."""

    output: str
    error: float
    correlation: float
    inside: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; JSON has no infinity, so an error without a number is null."""
        error = self.error if math.isfinite(self.error) else None
        return {**dataclasses.asdict(self), "error": error}


class OutputTrials:
    """Runs one graph's trials.

    Args:
        probe: runs graphs.
        path: an fp32 graph.
        recipe: how it is converted.
        feeds: one mapping for each run.
        tolerance: of its outputs.

    Raises:
        InputError: there are no feeds, or the recipe does not fit the graph.
        EngineError: the graph cannot be run.
    """

    def __init__(
        self,
        probe: Probe,
        path: Path,
        recipe: GraphRecipe,
        feeds: Sequence[Tensors],
        tolerance: Tolerance,
    ) -> None:
        if not feeds:
            raise InputError(f"{path.stem} was never run in the recorded feeds; record them in mode full")
        self._probe = probe
        self._path = path
        self._recipe = recipe
        self._feeds = list(feeds)
        self._tolerance = tolerance
        self._graph = ir.load(path).graph
        self._outputs = tuple(str(value.name) for value in self._graph.outputs)
        self.exact: list[dict[str, Array]] = [{} for _ in self._feeds]
        """The fp32 graph's outputs, for each run."""
        for index, name, values in probe(path, self._feeds, self._outputs):
            self.exact[index][name] = values

    @property
    def candidates(self) -> tuple[str, ...]:
        """Nodes that may be kept exact and are not by the recipe, in the graph's order."""
        names = {node.name or "" for node in self._graph}
        islands = self._islands()
        if self._recipe.quantized is None:
            can = frozenset(node.name or "" for node in self._graph if _computes(node))
        else:
            left = match_rules(self._recipe.excluded, names, where=self._path.stem)
            can = match_nodes(self._recipe.quantized.nodes, names, where=self._path.stem) - left
        return tuple(node.name for node in self._graph if node.name in can - islands and node.name)

    def recipe(self, nodes: Collection[str], *, because: str = "on trial") -> GraphRecipe:
        """The recipe with these nodes kept exact as well.

        Of the readers of a smoothed tensor all are, or none: it is divided for all of them.
        """
        if not nodes:
            return self._recipe
        kept = {*nodes, *self._siblings(nodes)}
        rule = Rule(
            nodes=tuple(str(node.name) for node in self._graph if node.name in kept),
            because=because,
            origin="bisect",
        )
        if self._recipe.quantized is None:
            return dataclasses.replace(self._recipe, fp32=(*self._recipe.fp32, rule))
        return dataclasses.replace(self._recipe, excluded=(*self._recipe.excluded, rule))

    def inside(self, nodes: Collection[str]) -> bool:
        """Whether all outputs of all feeds are inside with exactly these nodes; ends at the first outside."""
        return all(outcome.inside for _, outcome in self._run(self._model(nodes)))

    def worst(self, nodes: Collection[str]) -> Outcome:
        """The worst output of all feeds, by the recipe for these nodes; later trials begin with its feed."""
        model = converted_model(self._path, self.recipe(nodes), weights="cast")
        outcomes = list(self._run(model))
        worst = max(outcomes, key=lambda pair: (not pair[1].inside, pair[1].error))
        self._feeds.insert(0, self._feeds.pop(worst[0]))
        self.exact.insert(0, self.exact.pop(worst[0]))
        return worst[1]

    def broken(self) -> tuple[Broken, ...]:
        """Where NaN or infinity begins in the fp32 graph itself, on these feeds."""
        measured = headroom(self._probe, self._path, self._feeds, self._recipe.half)
        return broken(self._graph, measured)

    def guess(self) -> tuple[tuple[str, ...], Deviation | None]:
        """Nodes that may suffice, in the graph's order, and the first tensor that goes wrong.

        Round by round, on the worst feed: the nodes around the first tensor that is off, and around every
        tensor beyond the end of the type.
        """
        candidates, first = self.candidates, None
        guessed = frozenset[str]()
        for _ in range(_MOST_ROUNDS):
            tensors = simulated(self._probe, self._path, self.recipe(guessed), self._feeds[:1])
            off = [each for each in tensors if each.off(self._tolerance.error)]
            if not off:
                break
            first = first or off[0]
            largest = REACHES[self._recipe.half].largest
            wrong = {off[0].tensor, *(each.tensor for each in tensors if each.largest > largest)}
            found = self._around(wrong) & set(candidates)
            if found <= guessed:
                break
            guessed |= found
        return tuple(node for node in candidates if node in guessed), first

    def _siblings(self, nodes: Collection[str]) -> Iterator[str]:
        """Who else reads the smoothed tensors that these nodes read."""
        smoothed = () if self._recipe.quantized is None else self._recipe.quantized.smoothing
        for value in (value for node in self._graph for value in node.outputs if value.name in smoothed):
            readers = [use.node.name or "" for use in value.uses()]
            if any(reader in nodes for reader in readers):
                yield from readers

    def _model(self, nodes: Collection[str]) -> ir.Model:
        """The graph on trial."""
        if self._recipe.quantized is not None:
            return converted_model(self._path, self.recipe(nodes), weights="cast")
        asked = {*self._islands(), *nodes}
        moves = {node.name for node in self._graph if node.op_type in MOVES}
        kept = closed(self._graph, asked) & (asked | moves)
        cast = half_weight_nodes(self._recipe, self._names(), where=self._path.stem).difference(nodes)
        half = HalfPrecision(self._recipe.half, kept, half_weights=cast, weights="cast")
        return half(ir.load(self._path))

    def _islands(self) -> frozenset[str]:
        """Of the recipe as it is."""
        return closed(self._graph, match_rules(self._recipe.single, self._names(), where=self._path.stem))

    def _names(self) -> frozenset[str]:
        return frozenset(node.name or "" for node in self._graph)

    def _run(self, model: ir.Model) -> Iterator[tuple[int, Outcome]]:
        """Index of the feed, and an output of it."""
        for index, name, got in self._probe(model, self._feeds, self._outputs, folder=self._path.parent):
            close = measure_parity(got, self.exact[index][name])
            inside = close.error <= self._tolerance.error and close.correlation >= self._tolerance.correlation
            yield index, Outcome(name, close.error, close.correlation, inside)

    def _around(self, tensors: Collection[str]) -> set[str]:
        """Who makes and reads tensors, and who makes what those are made from."""
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
