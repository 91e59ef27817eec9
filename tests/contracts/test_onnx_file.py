"""The reader of ONNX files gives what the onnx package gives, and refuses what it cannot read."""

import shutil

import numpy as np
import pytest

from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.onnx_file import _float8, read_onnx
from refdiff.errors import BundleError

GRAPH = "clip_image"


def _path():
    return find_bundle("mini").graph_path(GRAPH)


@pytest.mark.needs_torch
def test_nodes_and_weights_are_those_of_the_onnx_package():
    onnx = pytest.importorskip("onnx")
    model, graph = onnx.load(_path()), read_onnx(_path())
    assert [(n.operator, n.inputs, n.outputs) for n in graph.nodes] == [
        (n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node
    ]
    for ours, theirs in zip(graph.nodes, model.graph.node, strict=True):
        assert ours.attributes == {a.name: onnx.helper.get_attribute_value(a) for a in theirs.attribute}
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert graph.weights.keys() == expected.keys()
    for name, values in expected.items():
        assert graph.weights[name].dtype == values.dtype
        np.testing.assert_array_equal(graph.weights[name], values)
    assert graph.outputs == ("vectors",)


def test_bytes_are_read_as_float8_numbers():
    table = _float8()
    assert table[[0x00, 0x01, 0x08, 0x38, 0x7E, 0xB8]].tolist() == [0, 2**-9, 2**-6, 1, 448, -1]
    assert np.isnan(table[[0x7F, 0xFF]]).all()


@pytest.mark.parametrize("keep", [0, 1, 100, 20_000])
def test_a_file_that_ends_early_is_refused(tmp_path, keep):
    data = _path().read_bytes()[:keep]
    (tmp_path / "g.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="cannot be read on the host"):
        read_onnx(tmp_path / "g.onnx")


def test_weights_that_end_early_are_refused(tmp_path):
    path = _path()
    shutil.copy(path, tmp_path)
    with (path.parent / f"{path.name}.data").open("rb") as whole:
        (tmp_path / f"{path.name}.data").write_bytes(whole.read(1_000_000))
    with pytest.raises(BundleError, match="cannot be read on the host"):
        read_onnx(tmp_path / path.name)


def test_data_outside_the_folder_is_never_read(tmp_path):
    (tmp_path / "b").mkdir()
    path = _path()
    shutil.copy(path.parent / f"{path.name}.data", tmp_path / "stolen")
    name = f"{path.name}.data".encode()
    (tmp_path / "b" / "g.onnx").write_bytes(
        path.read_bytes().replace(name, b"../stolen".ljust(len(name), b"/"))
    )
    with pytest.raises(BundleError, match="outside its folder"):
        read_onnx(tmp_path / "b" / "g.onnx")
