"""Graphs as files, as the audit and the bisection read them; what they run on, and what is inside."""

import os
from pathlib import Path

import onnx_ir as ir

from refdiff.accuracy.tolerances import GraphTolerance, graph_tolerance
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.parity import measure_parity
from refdiff.contracts.recipe import GraphRecipe
from refdiff.contracts.session import Array
from refdiff.engines.intermediate_tensors import probe
from refdiff.passes.convert import load_converted
from tests.support.planted import Plant
from tests.support.small_graphs import BUNDLE, miniature_graph, outputs


def saved(model: ir.Model, folder: Path, name: str = "graph") -> Path:
    path = folder / f"{name}.onnx"
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    return path


def planted_miniature(name: str, plant: Plant, folder: Path) -> Path:
    """A graph of the miniature with a fault."""
    model = miniature_graph(name)
    plant(model)
    return saved(model, folder, name)


def golden_feeds(name: str) -> dict[str, Array]:
    """What a graph of the miniature was recorded on."""
    feeds, _ = open_bundle(BUNDLE, verify="size").golden()[name]
    return dict(feeds)


def tolerance_of(name: str, precision: str) -> GraphTolerance:
    """The committed tolerance of a graph of this name."""
    return graph_tolerance(precision, name)


def is_inside(path: Path, recipe: GraphRecipe, feeds: dict[str, Array], tolerance: GraphTolerance) -> bool:
    """Convert a graph, and compare each of its outputs with the fp32 graph's."""
    got = outputs(load_converted(path, recipe), feeds, folder=path.parent)
    close = [measure_parity(got[name], exact) for _, name, exact in probe(path, [feeds], tuple(got))]
    return all(each.error <= tolerance.error and each.correlation >= tolerance.correlation for each in close)


def link_away(path: Path, folder: Path) -> Path:
    """Link a graph's files into another folder, as an installer does from its cache."""
    folder.mkdir()
    for file in path.parent.iterdir():
        os.link(file, folder / file.name)
    return folder / path.name
