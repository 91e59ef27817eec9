"""Recipes for tests that need one of eight bits without a recording."""

from __future__ import annotations

import dataclasses

from refdiff.calibration.precision import half_recipe
from refdiff.calibration.ranges import collect
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.recipe import Quantized, Recipe
from refdiff.engines.intermediate_tensors import probe
from refdiff.passes.quantizable import data_inputs, default_left, eight_bit_nodes
from tests.support.small_graphs import BUNDLE, miniature_graph


def eight_bit_recipe_of(graph: str) -> Recipe:
    """The miniature in half precision but for one graph in int8, ranges from its golden feed."""
    bundle = open_bundle(BUNDLE)
    recipe = half_recipe(BUNDLE, model=bundle.spec.name, sources=bundle.manifest.sources)
    half, model = recipe.graphs[graph], miniature_graph(graph).graph
    left = default_left(graph, model)
    nodes = eight_bit_nodes(model, islands=half.single, left=left)
    feeds = [bundle.golden()[graph][0]]
    ranges = collect(probe, bundle.graph_path(graph), feeds, data_inputs(model, nodes), method="minmax")
    quantised = Quantized(type="int8", nodes=nodes, ranges=ranges, method="minmax")
    whole = dataclasses.replace(half, quantized=quantised, excluded=left)
    return dataclasses.replace(recipe, graphs={**recipe.graphs, graph: whole})
