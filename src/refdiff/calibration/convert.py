"""One fp32 graph and its recipe in, the graph in fewer bits out: the passes in their order."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from refdiff.calibration.half import HalfPrecision, Weights
from refdiff.calibration.islands import closed
from refdiff.calibration.quantise import Quantise
from refdiff.calibration.smooth import Smooth
from refdiff.contracts.recipe import GraphRecipe, matching, named

EXTERNAL_FROM_BYTES = 1024
"""Smaller tensors stay inside the ONNX file, as the exporter leaves them."""


def convert_graph(source: Path, target: Path, recipe: GraphRecipe) -> None:
    """Write `target` and its weights beside it, `<target>.data`; one weight is in memory at a time.

    Raises:
        InputError: the recipe names nodes the graph does not have, or a weight does not fit into half
            precision.
    """
    model = converted_model(source, recipe)
    _forget_inner_types(model)
    ir.save(model, target, external_data=f"{target.name}.data", size_threshold_bytes=EXTERNAL_FROM_BYTES)


def _forget_inner_types(model: ir.Model) -> None:
    """Types and shapes of inner tensors follow from the nodes, and take a quarter of a small graph's file."""
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outputs:
                value.type, value.shape = None, None


def converted_model(source: Path, recipe: GraphRecipe, *, weights: Weights = "stored") -> ir.Model:
    """The converted graph; its weights are computed when they are asked for."""
    model = ir.load(source)
    names = frozenset(node.name or "" for node in model.graph)
    islands = closed(model.graph, named(recipe.fp32, names, where=source.stem))
    if recipe.quantised is not None:
        left = named(recipe.left, names, where=source.stem)
        nodes = matching(recipe.quantised.nodes, names, where=source.stem) - left - islands
        Smooth(recipe.quantised.smoothing, nodes)(model)
        Quantise(recipe.quantised, nodes)(model)
    HalfPrecision(recipe.half, islands, weights=weights)(model)
    return model
