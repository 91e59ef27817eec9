"""The toolkit's own recipes: what the built-in rules say of each graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir

from refdiff.calibration.islands import default_half_weights, default_islands
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.recipe import GraphRecipe, Half, Recipe

CONVERTED = tuple(name for name in GRAPHS if name != "unet_taps")
"""Graphs that have a recipe; `unet_taps` is cut out of `unet` afterwards."""


def half_recipe(
    folder: Path,
    *,
    model: str,
    sources: Mapping[str, str],
    half: Half = "fp16",
    graphs: Iterable[str] = CONVERTED,
) -> Recipe:
    """Half precision everywhere but for the islands by rule.

    Args:
        folder: of the fp32 bundle.
        model: its name.
        sources: its weights.
        half: which of the two types.
        graphs: which to convert.
    """
    loaded = {name: ir.load(folder / f"{name}.onnx").graph for name in graphs}
    return Recipe(
        model=model,
        sources=dict(sources),
        graphs={
            name: GraphRecipe(
                half=half,
                fp32=default_islands(graph, half),
                half_weights=default_half_weights(name),
            )
            for name, graph in loaded.items()
        },
    )
