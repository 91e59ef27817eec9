"""Multiply-adds of single operators, counted by hand."""

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from refdiff.errors import InputError
from refdiff.profiling.macs import count_macs


def written(folder: Path, inputs: str, body: str, outputs: str) -> Path:
    text = f'<ir_version: 8, opset_import: ["" : 18]> g ({inputs}) => ({outputs}) {{ {body} }}'
    path = folder / "graph.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.mark.parametrize(
    ("inputs", "body", "outputs", "count"),
    [
        ("float[2,3,5] a, float[2,5,7] b", "y = MatMul(a, b)", "float[2,3,7] y", 2 * 3 * 7 * 5),
        ("float[B,3,5] a, float[5,7] b", "y = MatMul(a, b)", "float[B,3,7] y", 4 * 3 * 7 * 5),
        ("float[3,5] a, float[5,7] b", "y = Gemm(a, b)", "float[3,7] y", 3 * 7 * 5),
        ("float[5,3] a, float[5,7] b", "y = Gemm <transA: int = 1> (a, b)", "float[3,7] y", 3 * 7 * 5),
        (
            "float[1,4,8,8] a, float[6,4,3,3] w",
            "y = Conv <pads = [1, 1, 1, 1]> (a, w)",
            "float[1,6,8,8] y",
            6 * 8 * 8 * 4 * 9,
        ),
        (
            "float[1,4,8,8] a, float[4,1,3,3] w",
            "y = Conv <group = 4, pads = [1, 1, 1, 1]> (a, w)",
            "float[1,4,8,8] y",
            4 * 8 * 8 * 9,
        ),
        (
            "float[1,4,8,8] a, float[4,2,2,2] w",
            "y = ConvTranspose <strides = [2, 2]> (a, w)",
            "float[1,2,16,16] y",
            4 * 8 * 8 * 2 * 4,
        ),
        (
            "float[2,3,4,5] a, float[3,6,5] b",
            'y = Einsum <equation = "bhwc,hkc->bhwk"> (a, b)',
            "float[2,3,4,6] y",
            2 * 3 * 4 * 5 * 6,
        ),
        ("float[3,5] a", "y = Softmax(a)", "float[3,5] y", 0),
    ],
)
def test_an_operator(tmp_path: Path, inputs: str, body: str, outputs: str, count: int) -> None:
    assert count_macs(written(tmp_path, inputs, body, outputs), {"B": 4}) == count


def test_a_size_without_a_value_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "float[B,3,5] a, float[5,7] b", "y = MatMul(a, b)", "float[B,3,7] y")
    with pytest.raises(InputError, match="no size of dimension B, have: c"):
        count_macs(path, {"c": 1})


def test_a_dimension_may_be_a_sum_as_the_exporter_writes_it(tmp_path: Path) -> None:
    path = written(tmp_path, "float[B,5] a, float[5,7] b", "y = MatMul(a, b)", "float[B,7] y")
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "2*p + c"
    onnx.save(model, path)
    assert count_macs(path, {"p": 3, "c": 1}) == 7 * 7 * 5


def test_a_shape_that_is_not_written_is_inferred(tmp_path: Path) -> None:
    body = "h = MatMul(a, b) y = MatMul(h, b)"
    path = written(tmp_path, "float[B,5] a, float[5,5] b", body, "float[B,5] y")
    assert count_macs(path, {"B": 2}) == 2 * 2 * 5 * 5


def test_a_shape_the_graph_computes_is_inferred(tmp_path: Path) -> None:
    body = (
        "n = Shape <start: int = 0, end: int = 1> (a) m = Constant <value_ints: ints = [-1, 3]> ()"
        " s = Concat <axis: int = 0> (n, m) h = Reshape(a, s) y = MatMul(h, b)"
    )
    path = written(tmp_path, "float[B,6] a, float[3,4] b", body, "float[B,2,4] y")
    assert count_macs(path, {"B": 5}) == 5 * 2 * 4 * 3


def test_a_shape_that_follows_from_nothing_is_an_error(tmp_path: Path) -> None:
    body = "h = Mystery <x: int = 1> (a) y = MatMul(h, b)"
    with pytest.raises(InputError, match="a shape is missing"):
        count_macs(written(tmp_path, "float[5,5] a, float[5,5] b", body, "float[5,5] y"), {})
