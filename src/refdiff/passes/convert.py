"""One fp32 graph and its recipe in, the graph in fewer bits out: the passes in their order."""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass

from refdiff.contracts.recipe import GraphRecipe, half_weight_nodes, match_nodes, match_rules
from refdiff.passes.half_precision import SMALL_BYTES, HalfPrecision, Weights
from refdiff.passes.keep_fp32 import closed
from refdiff.passes.quantize import Quantise
from refdiff.passes.smooth_quant import Smooth

EXTERNAL_FROM_BYTES = 256
"""Smaller tensors stay inside the ONNX file; the others of `unet` are shared with `unet_taps`."""


def convert_graph(source: Path, target: Path, recipe: GraphRecipe) -> None:
    """Write `target` and its weights beside it, `<target>.data`; one weight is in memory at a time.

    Raises:
        InputError: the recipe names nodes the graph does not have, or a weight does not fit into half
            precision.
    """
    model = converted_model(source, recipe)
    DeduplicateInitializersPass(size_limit=SMALL_BYTES)(model)  # the exporter repeats masks and tables
    _forget_what_follows(model)
    ir.save(model, target, external_data=f"{target.name}.data", size_threshold_bytes=EXTERNAL_FROM_BYTES)


def _forget_what_follows(model: ir.Model) -> None:
    """Inner tensors lose their types and get short names: half of a small graph's file.

    Types and shapes follow from the nodes, which keep the names of their modules; tensors and the scales of
    Q/DQ repeat those. Weights keep their names, and their types in their tensors.
    """
    graph = model.graph
    kept = {id(value) for value in (*graph.outputs, *graph.inputs)}
    taken = {*graph.initializers, *(value.name for value in (*graph.outputs, *graph.inputs))}
    short = (name for number in itertools.count() if (name := f"t{number}") not in taken)
    for value in (*graph.initializers.values(), *(value for node in graph for value in node.outputs)):
        if id(value) not in kept:
            scalar = value.const_value is not None and not value.const_value.shape
            value.type, value.shape = None, None
            if scalar or not value.is_initializer():
                value.name = next(short)


def converted_model(source: Path, recipe: GraphRecipe, *, weights: Weights = "stored") -> ir.Model:
    """The converted graph; its weights are computed when they are asked for."""
    model = ir.load(source)
    names = frozenset(node.name or "" for node in model.graph)
    islands = closed(model.graph, match_rules(recipe.single, names, where=source.stem))
    cast = half_weight_nodes(recipe, names, where=source.stem)
    if recipe.quantized is not None:
        left = match_rules(recipe.excluded, names, where=source.stem)
        nodes = match_nodes(recipe.quantized.nodes, names, where=source.stem) - left - islands
        alone = nodes & match_rules(recipe.quantized.weights_alone, names, where=source.stem)
        Smooth(recipe.quantized.smoothing, nodes - alone)(model)
        Quantise(recipe.quantized, nodes, alone)(model)
    HalfPrecision(recipe.half, islands, half_weights=cast, weights=weights)(model)
    return model
