"""From an fp32 bundle and recorded feeds to its eight-bit recipe: which nodes, and how far tensors reach."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.calibration.calibrate import feeds_of, thinned_records
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress
from refdiff.contracts.recipe import GraphRecipe, Quantized, QuantizedType, Recipe, match_rules

if TYPE_CHECKING:
    from refdiff.calibration.feeds import FeedStore

PURPOSE = "eight-bit precision"

METHODS = ("minmax", "percentile", "entropy")
"""How a range is taken from recorded magnitudes. Here, because this module loads without onnx."""

SMOOTHING = 0.7
"""Strength of SmoothQuant where none is asked for. Its authors take 0.5 to 0.75 (arXiv 2211.10438); on the
miniature's SAM encoder masks agree best with this one (100 scenes from seed 3,000,000: 0.994; 0.5: 0.985)."""

MOST_RECORDS = 24
"""Records of one graph that ranges are taken from, evenly spread over all there are."""


def eight_bit_recipe(
    bundle: Bundle,
    half: Recipe,
    *,
    type: QuantizedType,
    feeds: Path | None,
    method: str,
    smoothing: float | None,
    progress: Progress,
) -> Recipe:
    """A half-precision recipe, completed with what can be held in eight bits.

    Args:
        bundle: in fp32.
        half: its half-precision recipe.
        type: "int8" or "fp8".
        feeds: a recording of `calibrate`; None records some scenes of the miniature now.
        method: how ranges are taken; see `refdiff.calibration.ranges`.
        smoothing: strength of SmoothQuant, 0..1; None leaves it out.
        progress: told one line for each graph.

    Raises:
        InputError: the feeds cannot be used, or a tensor has no range.
    """
    with feeds_of(bundle, feeds, progress) as store:
        graphs = {
            name: _quantised(bundle, name, each, store, type, method, smoothing, progress)
            for name, each in half.graphs.items()
        }
    return dataclasses.replace(half, graphs=graphs)


def _quantised(
    bundle: Bundle,
    name: str,
    half: GraphRecipe,
    store: FeedStore,
    type: QuantizedType,
    method: str,
    smoothing: float | None,
    tell: Progress,
) -> GraphRecipe:
    """One graph's recipe: everything that can be in eight bits, but for what the rules leave."""
    with require_export(PURPOSE):
        import onnx_ir as ir

        from refdiff.calibration.ranges import collect, exponents
        from refdiff.engines.intermediate_tensors import probe
        from refdiff.passes.quantizable import (
            data_inputs,
            default_left,
            default_weights_alone,
            eight_bit_nodes,
        )
    path = bundle.graph_path(name)
    graph = ir.load(path).graph
    tell(f"{name}: measuring the ranges of its tensors")
    left = (*half.excluded, *default_left(name, graph))
    nodes = eight_bit_nodes(graph, islands=half.single, left=left)
    alone = default_weights_alone(name, nodes)
    unfed = match_rules(alone, nodes, where=name)
    fed = [node for node in nodes if node not in unfed]
    records = thinned_records(store, name, MOST_RECORDS)
    smoothed = {}
    if smoothing is not None:
        found = exponents(probe, path, records, fed, strength=smoothing)
        smoothed = {tensor: powers for tensor, powers in found.items() if any(powers)}
    tensors = data_inputs(graph, fed)
    reach = collect(probe, path, records, tensors, method=method, smoothing=smoothed)
    # Six digits: people read a recipe, and scales keep three.
    reach = {tensor: float(f"{largest:.6g}") for tensor, largest in reach.items()}
    quantised = Quantized(
        type=type, nodes=nodes, ranges=reach, method=method, smoothing=smoothed, weights_alone=alone
    )
    return dataclasses.replace(half, quantized=quantised if nodes else None, excluded=left)
