"""A converted graph beside its fp32 original, tensor by tensor: what really happens in fewer bits.

In: an fp32 graph, a recipe, feeds, a function that looks inside. Out: a `Deviation` for every tensor of both
graphs, in their order. The conversion keeps the names of nodes and tensors; weights are cast while
it runs, so nothing is written. Memory: what the probe holds, twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from refdiff.calibration.dynamic_range import is_single
from refdiff.calibration.probing import Probe
from refdiff.contracts.recipe import GraphRecipe
from refdiff.contracts.session import Array
from refdiff.passes.convert import converted_model


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One tensor in fewer bits, over all feeds."""

    tensor: str
    node: str
    operator: str
    error: float = 0.0
    """Largest difference over the largest magnitude in fp32, among values that stayed finite; the worst
    feed's."""
    largest: float = 0.0
    """Largest magnitude in fp32."""
    lost: int = 0
    """NaN and infinities that fp32 has not."""
    size: int = 0
    begins: bool = False
    """The node made them from inputs that hold none."""

    def off(self, error: float) -> bool:
        """Further from fp32 than that."""
        return self.lost > 0 or self.error > error

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
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


def simulated(
    probe: Probe, path: Path, recipe: GraphRecipe, feeds: Sequence[Mapping[str, Array]]
) -> tuple[Deviation, ...]:
    """Run a graph in fp32 and as a recipe says, and compare all results of its nodes.

    Tensors that SmoothQuant rescales are left out: they are meant to differ.

    Args:
        probe: runs graphs.
        path: an fp32 graph.
        recipe: how to convert it.
        feeds: one mapping for each run.

    Raises:
        InputError: the recipe does not fit the graph.
        EngineError: a graph cannot be run.
    """
    converted = converted_model(path, recipe, weights="cast")
    graph = ir.load(path).graph
    known = {str(value.name) for node in converted.graph for value in node.outputs}
    known -= set() if recipe.quantized is None else set(recipe.quantized.smoothing)
    compared = {
        str(value.name): Deviation(tensor=str(value.name), node=node.name or "", operator=node.op_type)
        for node in graph
        for value in node.outputs
        if is_single(value) and value.name in known
    }
    for name, got, exact in _pairs(probe, path, converted, feeds, tuple(compared)):
        compared[name] = _worse(compared[name], got, exact)
    return tuple(_with_beginnings(graph, compared))


def _pairs(
    probe: Probe,
    path: Path,
    converted: ir.Model,
    feeds: Sequence[Mapping[str, Array]],
    names: Sequence[str],
) -> Iterator[tuple[str, Array, Array]]:
    """Name, the converted graph's values, the original's.

    Both probes hand out the same tensors in about the same order: little waits for its counterpart.
    """
    waiting: tuple[dict[tuple[int, str], Array], dict[tuple[int, str], Array]] = ({}, {})
    both = zip(
        probe(converted, feeds, names, folder=path.parent),
        probe(path, feeds, names),
        strict=True,
    )
    for pair in both:
        for side, (index, name, values) in enumerate(pair):
            waiting[side][index, name] = values
        for index, name, _ in pair:
            if (index, name) in waiting[0] and (index, name) in waiting[1]:
                yield name, waiting[0].pop((index, name)), waiting[1].pop((index, name))


def _worse(before: Deviation, got: Array, exact: Array) -> Deviation:
    sound = np.isfinite(exact)
    both = sound & np.isfinite(got)
    largest = float(np.abs(exact[sound]).max(initial=0.0))
    apart = float(np.abs(got[both] - exact[both]).max(initial=0.0))
    return replace(
        before,
        error=max(before.error, apart / (largest or 1.0)),
        largest=max(before.largest, largest),
        lost=before.lost + int(sound.sum() - both.sum()),
        size=before.size + got.size,
    )


def _with_beginnings(graph: ir.Graph, compared: Mapping[str, Deviation]) -> Iterator[Deviation]:
    """In the graph's order; a tensor that was not compared is as good as what it was made from."""
    sick = set[str]()
    for node in graph:
        ill = any(value is not None and value.name in sick for value in node.inputs)
        for name in (str(value.name) for value in node.outputs if is_single(value)):
            each = compared.get(name)
            lost = ill if each is None else each.lost > 0
            if lost:
                sick.add(name)
            if each is not None:
                yield replace(each, begins=lost and not ill)
