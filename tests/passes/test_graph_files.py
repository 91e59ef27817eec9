"""Graphs and their data files: where they may be, and how they may be linked."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from refdiff.contracts.recipe import GraphRecipe
from refdiff.errors import BundleError
from refdiff.passes.convert import convert_graph
from refdiff.passes.graph_files import load_graph
from tests.support.fuzzing import fuzz_file
from tests.support.graph_files import link_away, saved
from tests.support.plans import BUNDLE
from tests.support.small_graphs import small_graph

NAME = "sam_masks.onnx"
WEIGHTS = np.arange(1024, dtype=np.float32).reshape(1024, 1)


def write_graph(folder: Path) -> Path:
    folder.mkdir()
    return saved(small_graph("float[1, 1024] x => float[1, 1] y", "y = MatMul(x, w)", {"w": WEIGHTS}), folder)


def weights(path: Path, name: str = "w") -> np.ndarray:
    tensor = load_graph(path).graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_a_graph_whose_files_have_hard_links_is_read_and_converted(tmp_path: Path) -> None:
    path = link_away(write_graph(tmp_path / "cache"), tmp_path / "installed")
    with pytest.raises(ValueError, match="hard links"):  # else this module needs no code for it
        ir.load(path).graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    assert np.array_equal(weights(path), WEIGHTS)
    convert_graph(path, tmp_path / "half.onnx", GraphRecipe(half="fp16"))
    assert np.array_equal(weights(tmp_path / "half.onnx", "w.fp16").astype(np.float32), WEIGHTS)


def test_a_data_file_in_another_folder_is_refused_with_and_without_links(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "graph")
    data = path.with_name(f"{path.name}.data")
    os.link(data, tmp_path / "again")
    data.rename(tmp_path / "outside.data")
    data.symlink_to(tmp_path / "outside.data")
    with pytest.raises(ValueError, match="outside the base directory"):
        weights(path)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    for name in (NAME, f"{NAME}.data"):
        shutil.copyfile(BUNDLE / name, tmp_path / name)
    return tmp_path / NAME


def test_a_sound_graph_is_read(graph: Path) -> None:
    assert load_graph(graph).graph.initializers


def test_a_weight_of_another_length_than_its_shape_is_refused(graph: Path) -> None:
    content = graph.read_bytes()
    place = content.index(b"length")
    digits = content.index(b"\x12", place) + 2
    graph.write_bytes(content[:digits] + b"9" + content[digits + 1 :])
    with pytest.raises(BundleError, match=r"sam_masks\.onnx is not a graph that can be read .*bytes, got 9"):
        load_graph(graph)


def test_any_graph_is_read_or_refused(graph: Path) -> None:
    sample = graph.read_bytes()
    assert fuzz_file(load_graph, [sample], graph, seed=11, allowed=BundleError).refused
