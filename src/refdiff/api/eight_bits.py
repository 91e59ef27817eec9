"""From an fp32 bundle and recorded feeds to its eight-bit recipe: which nodes, and how far tensors reach."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.api.calibrating import calibrate, open_feeds
from refdiff.api.extras import import_torch_room
from refdiff.api.progress import Progress
from refdiff.calibration.recording import spread
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.recipe import GraphRecipe, Quantised, QuantisedType, Recipe
from refdiff.contracts.session import Array

if TYPE_CHECKING:
    from refdiff.calibration.feeds import FeedStore

PURPOSE = "eight-bit precision"

QUESTIONS = 8
"""Scenes that are recorded where no feeds are given."""

MOST_RECORDS = 24
"""Records of one graph that ranges are taken from, evenly spread over all there are."""


def eight_bit_recipe(
    bundle: Bundle,
    half: Recipe,
    *,
    type: QuantisedType,
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
    with _store(bundle, feeds, progress) as store:
        graphs = {
            name: _quantised(bundle, name, each, store, type, method, smoothing, progress)
            for name, each in half.graphs.items()
        }
    return dataclasses.replace(half, graphs=graphs)


@contextmanager
def _store(bundle: Bundle, feeds: Path | None, tell: Progress) -> Iterator[FeedStore]:
    if feeds is not None:
        yield open_feeds(feeds, bundle)
        return
    with tempfile.TemporaryDirectory() as scratch:
        tell(f"recording feeds of {QUESTIONS} scenes")
        calibrate(bundle.path, output=Path(scratch) / "feeds", count=QUESTIONS, progress=tell)
        yield open_feeds(Path(scratch) / "feeds", bundle)


def _quantised(
    bundle: Bundle,
    name: str,
    half: GraphRecipe,
    store: FeedStore,
    type: QuantisedType,
    method: str,
    smoothing: float | None,
    tell: Progress,
) -> GraphRecipe:
    """One graph's recipe: everything that can be in eight bits, but for what the rules leave."""
    onnx_ir = import_torch_room("onnx_ir", PURPOSE)
    rules = import_torch_room("refdiff.calibration.quantisable", PURPOSE)
    ranges = import_torch_room("refdiff.calibration.ranges", PURPOSE)
    path = bundle.graph_path(name)
    graph = onnx_ir.load(path).graph
    tell(f"{name}: how far its tensors reach")
    left = (*half.left, *rules.default_left(name, graph))
    nodes = rules.eight_bit_nodes(graph, islands=half.fp32, left=left)
    probe = import_torch_room("refdiff.engines.probe", PURPOSE).probe
    records = _thinned(store.records(name))
    smoothed = {}
    if smoothing is not None:
        smooth = import_torch_room("refdiff.calibration.smooth", PURPOSE)
        smoothed = smooth.exponents(probe, path, records, nodes, strength=smoothing)
    tensors = rules.data_inputs(graph, nodes)
    reach = ranges.collect(probe, path, records, tensors, method=method, smoothing=smoothed)
    quantised = Quantised(type=type, nodes=nodes, ranges=reach, method=method, smoothing=smoothed)
    return dataclasses.replace(half, quantised=quantised if nodes else None, left=left)


def _thinned(records: Sequence[Mapping[str, Array]]) -> Sequence[Mapping[str, Array]]:
    """At most `MOST_RECORDS`, evenly spread."""
    chosen = spread(len(records), MOST_RECORDS)
    return [records[index] for index in sorted(chosen)]
