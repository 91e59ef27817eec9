"""Convert one fp32 graph as its recipe says: the passes in their order."""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass

from refdiff.contracts.recipe import GraphRecipe, half_weight_nodes, match_nodes, match_rules
from refdiff.passes.graph_files import load_graph
from refdiff.passes.half_precision import SMALL_BYTES, HalfPrecision, Weights
from refdiff.passes.keep_fp32 import close_regions
from refdiff.passes.quantize import Quantize
from refdiff.passes.smooth_quant import SmoothQuant

EXTERNAL_FROM_BYTES = 256
"""Smaller tensors stay inside the ONNX file; `unet` shares the others with `unet_taps`."""


def convert_graph(source: Path, target: Path, recipe: GraphRecipe) -> None:
    """Write the converted graph to `target`, and its weights to `<target>.data`.

    Weights are converted while they are written, one tensor in memory at a time.

    Raises:
        InputError: the recipe names nodes the graph does not have, or a weight does not fit into half
            precision.
    """
    model = load_converted(source, recipe)
    DeduplicateInitializersPass(size_limit=SMALL_BYTES)(model)  # the exporter repeats masks and tables
    _shorten_inner_tensors(model)
    ir.save(model, target, external_data=f"{target.name}.data", size_threshold_bytes=EXTERNAL_FROM_BYTES)


def load_converted(source: Path, recipe: GraphRecipe, *, weights: Weights = "stored") -> ir.Model:
    """Return the converted graph; its weights are computed when they are read.

    Args:
        source: an fp32 graph.
        recipe: how to convert it.
        weights: see `HalfPrecision`.

    Raises:
        InputError: see `convert_graph`.
    """
    model = load_graph(source)
    names, where = frozenset(node.name or "" for node in model.graph), source.stem
    fp32 = close_regions(model.graph, match_rules(recipe.single, names, where=where))
    half_weights = half_weight_nodes(recipe, names, where=where)
    if recipe.quantized is not None:
        excluded = match_rules(recipe.excluded, names, where=where)
        nodes = match_nodes(recipe.quantized.nodes, names, where=where) - excluded - fp32
        weights_alone = nodes & match_rules(recipe.quantized.weights_alone, names, where=where)
        SmoothQuant(recipe.quantized.smoothing, nodes - weights_alone)(model)
        Quantize(recipe.quantized, nodes, weights_alone)(model)
    return HalfPrecision(recipe.half, fp32, half_weights=half_weights, weights=weights)(model)


def _shorten_inner_tensors(model: ir.Model) -> None:
    """Drop the types of inner tensors and give them short names: half the size of a small graph's file.

    Types and shapes follow from the nodes, which keep the names of their modules. Weights keep their names,
    and their types in their tensors.
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
