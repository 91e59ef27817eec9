"""Build recipes by the built-in rules: half precision, and eight bits with ranges from recorded feeds.

This module loads without onnx_ir; its functions need the extra `export`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.calibration.calibrate import evenly_spread_records, feeds_of
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress
from refdiff.contracts.recipe import (
    HALVES,
    QUANTIZED,
    GraphRecipe,
    Half,
    Quantized,
    QuantizedType,
    Recipe,
    match_rules,
    read_recipe,
)
from refdiff.errors import InputError

if TYPE_CHECKING:
    from refdiff.contracts.session import Array

PURPOSE = "changing the precision"

CONVERTED = tuple(name for name in GRAPHS if name != "unet_taps")
"""Graphs that have a recipe; `unet_taps` is cut out of the converted `unet`."""

METHODS = ("minmax", "percentile", "entropy")
"""Ways to take a range from recorded values; see `refdiff.calibration.ranges`."""

SMOOTHING = 0.7
"""Default strength of SmoothQuant. Its authors take 0.5 to 0.75 (arXiv 2211.10438); with this one the masks
of the miniature's SAM encoder agree best (100 scenes from seed 3,000,000: 0.994; 0.5: 0.985)."""

MOST_RECORDS = 24
"""Records of one graph that ranges are measured on, evenly spread over all there are."""


def half_recipe(bundle: Bundle, half: str = "fp16") -> Recipe:
    """Build the recipe for half precision everywhere except in the fp32 regions of the built-in rules.

    Args:
        bundle: the fp32 bundle.
        half: "fp16" or "bf16".

    Raises:
        InputError: another `half`.
        MissingDependencyError: onnx_ir is not installed.
    """
    if half not in HALVES:
        raise InputError(f"unknown half precision {half!r}; choose one of: {', '.join(HALVES)}")
    with require_export(PURPOSE):
        from refdiff.passes.graph_files import load_graph
        from refdiff.passes.keep_fp32 import default_fp32_nodes, default_half_weights
    type_: Half = "bf16" if half == "bf16" else "fp16"
    graphs = {}
    for name in CONVERTED:
        graph = load_graph(bundle.graph_path(name)).graph
        graphs[name] = GraphRecipe(
            half=type_,
            fp32=default_fp32_nodes(graph, type_),
            half_weights=default_half_weights(name, graph),
        )
    return Recipe(model=bundle.spec.name, sources=dict(bundle.manifest.sources), graphs=graphs)


def eight_bit_recipe(
    bundle: Bundle,
    *,
    type: QuantizedType,
    feeds: Path | None,
    method: str,
    smoothing: float | None,
    progress: Progress,
) -> Recipe:
    """Build the recipe for eight bits wherever the built-in rules allow them, and fp16 elsewhere.

    Args:
        bundle: the fp32 bundle.
        type: "int8" or "fp8".
        feeds: a recording of `calibrate`; None records scenes of the miniature now.
        method: how ranges are taken, one of `METHODS`.
        smoothing: strength of SmoothQuant, 0..1; None leaves it out.
        progress: receives one line per graph.

    Raises:
        InputError: the feeds cannot be used, or a tensor has no range.
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
    """
    half = half_recipe(bundle)
    graphs = {}
    with feeds_of(bundle, feeds, progress) as store:
        for name, recipe in half.graphs.items():
            progress(f"{name}: measuring the ranges of its tensors")
            records = evenly_spread_records(store, name, MOST_RECORDS)
            graphs[name] = _quantize_graph(
                bundle.graph_path(name), recipe, records, type=type, method=method, smoothing=smoothing
            )
    return dataclasses.replace(half, graphs=graphs)


def _quantize_graph(
    path: Path,
    half: GraphRecipe,
    records: Sequence[Mapping[str, Array]],
    *,
    type: QuantizedType,
    method: str,
    smoothing: float | None,
) -> GraphRecipe:
    """Complete one graph's half-precision recipe with the nodes to quantize and their ranges."""
    with require_export(PURPOSE):
        from refdiff.calibration.ranges import collect_ranges, smoothing_exponents
        from refdiff.passes.graph_files import load_graph
        from refdiff.passes.quantizable import (
            choose_eight_bit_nodes,
            data_inputs,
            default_excluded,
            default_weights_alone,
        )
    name, graph = path.stem, load_graph(path).graph
    excluded = (*half.excluded, *default_excluded(name, graph))
    nodes = choose_eight_bit_nodes(graph, fp32_rules=half.single, excluded=excluded)
    weights_alone = default_weights_alone(name, nodes)
    unfed = match_rules(weights_alone, nodes, where=name)
    fed = [node for node in nodes if node not in unfed]
    exponents = {}
    if smoothing is not None:
        found = smoothing_exponents(path, records, fed, strength=smoothing)
        exponents = {tensor: powers for tensor, powers in found.items() if any(powers)}
    ranges = collect_ranges(path, records, data_inputs(graph, fed), method=method, smoothing=exponents)
    quantized = Quantized(
        type=type,
        nodes=nodes,
        # Six digits: people read a recipe, and scales keep three.
        ranges={tensor: float(f"{range_:.6g}") for tensor, range_ in ranges.items()},
        method=method,
        smoothing=exponents,
        weights_alone=weights_alone,
    )
    return dataclasses.replace(half, quantized=quantized if nodes else None, excluded=excluded)


def read_recipe_for(path: Path, precision: str) -> Recipe:
    """Read a recipe that has to be for a precision.

    Raises:
        InputError: it is no recipe, or for another precision.
    """
    recipe = read_recipe(path)
    found = {graph.precision for graph in recipe.graphs.values()}
    found = (
        found & set(QUANTIZED) or found
    )  # in an eight-bit recipe some graphs are in half precision by rule
    if precision not in found:
        names = " or ".join(sorted(found)) or "nothing"
        raise InputError(
            f"{path} is a recipe for {names}, got --precision {precision}; use --precision {names}"
        )
    return recipe
