"""Recipes for tests that need one of eight bits without a recording."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from refdiff.calibration.ranges import collect_ranges
from refdiff.calibration.recipes import half_recipe
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.recipe import Quantized, Recipe, read_recipe
from refdiff.passes.quantizable import choose_eight_bit_nodes, data_inputs, default_excluded
from tests.support.small_graphs import BUNDLE, miniature_graph


@functools.cache
def half_recipe_of_mini(half: str = "fp16") -> Recipe:
    """The miniature in half precision by the built-in rules."""
    return half_recipe(open_bundle(BUNDLE), half)


def eight_bit_recipe_of(graph: str) -> Recipe:
    """The miniature in half precision but for one graph in int8, ranges from its golden feed."""
    bundle, recipe = open_bundle(BUNDLE, verify="size"), half_recipe_of_mini()
    half, model = recipe.graphs[graph], miniature_graph(graph).graph
    excluded = default_excluded(graph, model)
    nodes = choose_eight_bit_nodes(model, fp32_rules=half.single, excluded=excluded)
    feeds = [bundle.golden()[graph][0]]
    ranges = collect_ranges(bundle.graph_path(graph), feeds, data_inputs(model, nodes), method="minmax")
    quantized = Quantized(type="int8", nodes=nodes, ranges=ranges, method="minmax")
    whole = dataclasses.replace(half, quantized=quantized, excluded=excluded)
    return dataclasses.replace(recipe, graphs={**recipe.graphs, graph: whole})


def with_eight_bits_in(path: Path, *names: str) -> Recipe:
    """Return a written recipe with these graphs alone in eight bits, which is converted in half the time."""
    made = read_recipe(path)
    graphs = {
        name: graph if name in names else dataclasses.replace(graph, quantized=None)
        for name, graph in made.graphs.items()
    }
    return dataclasses.replace(made, graphs=graphs)
