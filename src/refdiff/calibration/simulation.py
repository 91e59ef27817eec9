"""Compare a converted graph with its fp32 original, tensor by tensor.

In: an fp32 graph, a recipe, feeds. Out: a `Deviation` for every tensor that both graphs have, in their order.
The conversion keeps the names of nodes and tensors; weights are cast while the graph runs, so nothing is
written. Memory: what two probes hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from refdiff.calibration.dynamic_range import is_single
from refdiff.contracts.recipe import GraphRecipe
from refdiff.contracts.session import Array
from refdiff.engines.intermediate_tensors import Probe, probe
from refdiff.passes.convert import load_converted
from refdiff.passes.graph_files import load_graph


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """The deviation of one tensor in fewer bits from fp32, over all feeds."""

    tensor: str
    node: str
    operator: str
    error: float = 0.0
    """Largest difference over the largest magnitude in fp32, among values that stayed finite; worst feed."""
    largest: float = 0.0
    """Largest magnitude in fp32."""
    lost: int = 0
    """Number of values that became NaN or infinite and are finite in fp32."""
    size: int = 0
    begins: bool = False
    """True if the node loses values although its inputs have lost none."""

    def off(self, error: float) -> bool:
        """Return whether the tensor lost values or its error exceeds `error`."""
        return self.lost > 0 or self.error > error

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "tensor": self.tensor,
            "node": self.node,
            "operator": self.operator,
            "error": self.error,
            "largest_magnitude": self.largest,
            "not_finite": self.lost,
            "size": self.size,
            "begins": self.begins,
        }


def simulate(
    path: Path, recipe: GraphRecipe, feeds: Sequence[Mapping[str, Array]], *, probe: Probe = probe
) -> tuple[Deviation, ...]:
    """Run a graph in fp32 and converted, and compare the results of all nodes.

    Tensors that SmoothQuant rescales are left out: they differ on purpose.

    Args:
        path: an fp32 graph.
        recipe: how to convert it.
        feeds: one mapping per run.
        probe: reads tensors, as `refdiff.engines.intermediate_tensors.probe`.

    Raises:
        InputError: the recipe does not fit the graph.
        EngineError: a graph cannot be run.
    """
    converted = load_converted(path, recipe, weights="cast")
    graph = load_graph(path).graph
    known = {str(value.name) for node in converted.graph for value in node.outputs}
    known -= set() if recipe.quantized is None else set(recipe.quantized.smoothing)
    compared = {
        str(value.name): Deviation(tensor=str(value.name), node=node.name or "", operator=node.op_type)
        for node in graph
        for value in node.outputs
        if is_single(value) and value.name in known
    }
    names = tuple(compared)
    pairs = zip(probe(converted, feeds, names, folder=path.parent), probe(path, feeds, names), strict=True)
    for name, got, exact in _pair_values(pairs):
        compared[name] = _add_run(compared[name], got, exact)
    return tuple(_mark_beginnings(graph, compared))


def _pair_values(
    pairs: Iterable[tuple[tuple[int, str, Array], tuple[int, str, Array]]],
) -> Iterator[tuple[str, Array, Array]]:
    """Yield name, values in the converted graph, values in the original.

    Both probes yield the same tensors in about the same order, so few values wait for their counterpart.
    """
    waiting: tuple[dict[tuple[int, str], Array], dict[tuple[int, str], Array]] = ({}, {})
    for pair in pairs:
        for side, (index, name, values) in enumerate(pair):
            waiting[side][index, name] = values
        for index, name, _ in pair:
            if (index, name) in waiting[0] and (index, name) in waiting[1]:
                yield name, waiting[0].pop((index, name)), waiting[1].pop((index, name))


def _add_run(before: Deviation, got: Array, exact: Array) -> Deviation:
    finite = np.isfinite(exact)
    both = finite & np.isfinite(got)
    largest = float(np.abs(exact[finite]).max(initial=0.0))
    difference = float(np.abs(got[both] - exact[both]).max(initial=0.0))
    return replace(
        before,
        error=max(before.error, difference / (largest or 1.0)),
        largest=max(before.largest, largest),
        lost=before.lost + int(finite.sum() - both.sum()),
        size=before.size + got.size,
    )


def _mark_beginnings(graph: ir.Graph, compared: Mapping[str, Deviation]) -> Iterator[Deviation]:
    """Yield deviations in the graph's order, with `begins` set.

    A tensor that was not compared counts as lost if one of its node's inputs is.
    """
    lost_names = set[str]()
    for node in graph:
        input_lost = any(value is not None and value.name in lost_names for value in node.inputs)
        for name in (str(value.name) for value in node.outputs if is_single(value)):
            each = compared.get(name)
            lost = input_lost if each is None else each.lost > 0
            if lost:
                lost_names.add(name)
            if each is not None:
                yield replace(each, begins=lost and not input_lost)
