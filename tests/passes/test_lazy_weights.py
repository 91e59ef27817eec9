"""Weights that are converted while they are written."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")


from refdiff.contracts.session import Array
from refdiff.errors import InputError
from refdiff.passes.half_precision import HalfPrecision, convert_lazily, to_half
from tests.support.small_graphs import noise

FP16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
LARGE = 1 << 15
"""Values in a tensor that is large enough to be converted late."""


class Census:
    """Counts the converted arrays that are alive."""

    def __init__(self) -> None:
        self.made = self.alive = self.most = 0

    def halved(self, values: Array) -> Array:
        half = values.astype(np.float16)
        weakref.finalize(half, self._gone)
        self.made += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        return half

    def _gone(self) -> None:
        self.alive -= 1


def graph_of(tensors: list[ir.TensorProtocol]) -> ir.Model:
    values = [
        ir.Value(name=each.name, shape=each.shape, type=ir.TensorType(each.dtype), const_value=each)
        for each in tensors
    ]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 19}, name="weights")
    return ir.Model(graph, ir_version=10)


@pytest.mark.slow
def test_one_converted_weight_is_alive_while_all_are_written(tmp_path: Path) -> None:
    census = Census()
    sources = [ir.tensor(noise(LARGE, seed=each), name=f"w{each}") for each in range(8)]
    model = graph_of(
        [convert_lazily(each, FP16, census.halved, name=f"{each.name}.fp16") for each in sources]
    )
    assert census.made == 0
    ir.save(model, tmp_path / "g.onnx", external_data="g.data", size_threshold_bytes=1024)
    gc.collect()
    assert (census.made, census.most, census.alive) == (8, 1, 0)


def test_what_was_written_is_what_was_converted(tmp_path: Path) -> None:
    source = ir.tensor(noise(LARGE // 8, 8), name="w")
    model = graph_of([to_half(source, FP16, name="w.fp16")])
    ir.save(model, tmp_path / "g.onnx", external_data="g.data", size_threshold_bytes=1024)
    written = ir.load(tmp_path / "g.onnx").graph.initializers["w.fp16"].const_value
    np.testing.assert_array_equal(written.numpy(), source.numpy().astype(np.float16))
    assert (tmp_path / "g.data").stat().st_size == 2 * LARGE


@pytest.mark.slow
def test_values_are_asked_for_each_time_and_not_kept() -> None:
    census = Census()
    lazy = convert_lazily(ir.tensor(noise(4), name="w"), FP16, census.halved, name="h")
    assert lazy.numpy().dtype == np.float16
    lazy.numpy()
    gc.collect()
    assert (census.made, census.alive) == (2, 0)


def test_a_large_weight_waits_and_a_small_one_does_not() -> None:
    assert isinstance(to_half(ir.tensor(noise(LARGE), name="w"), FP16, name="h"), ir.LazyTensor)
    assert not isinstance(to_half(ir.tensor(noise(4), name="w"), FP16, name="h"), ir.LazyTensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3), (LARGE, 1)])
def test_name_type_shape_and_size_are_known_before(shape: tuple[int, ...]) -> None:
    half = to_half(ir.tensor(noise(*shape), name="w"), BF16, name="h")
    assert (half.name, half.dtype, half.shape.numpy()) == ("h", BF16, shape)
    assert half.nbytes == 2 * int(np.prod(shape))
    assert half.numpy().shape == shape


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(FP16, [1.0, 2048.0, 2052.0, 0.0]), (BF16, [1.0, 2048.0, 2048.0, 2.0**-30])],
)
def test_ties_are_rounded_to_even(dtype: ir.DataType, expected: list[float]) -> None:
    values = ir.tensor(np.float32([1.0, 2049.0, 2051.0, 2.0**-30]), name="w")
    assert to_half(values, dtype, name="h").numpy().astype(np.float64).tolist() == expected


@pytest.mark.parametrize("count", [3, LARGE])
@pytest.mark.parametrize("next_to_it", [0.0, np.inf, np.nan])
def test_a_value_that_becomes_infinite_is_named_whatever_is_next_to_it(count: int, next_to_it: float) -> None:
    values = np.zeros(count, np.float32)
    values[:2] = 65_520.0, next_to_it
    with pytest.raises(InputError, match=r"^layer\.weight holds 65520, more than FLOAT16 can"):
        to_half(ir.tensor(values, name="layer.weight"), FP16, name="h").numpy()


def test_the_largest_value_that_rounds_down_is_kept() -> None:
    half = to_half(ir.tensor(np.float32([65_519.0, -np.inf]), name="w"), FP16, name="h").numpy()
    assert half.tolist() == [65_504.0, -np.inf]


def test_bfloat16_holds_what_float32_does_but_for_its_end() -> None:
    half = to_half(ir.tensor(np.float32([3e38]), name="w"), BF16, name="h").numpy()
    assert np.isfinite(half.astype(np.float32)).all()
    with pytest.raises(InputError, match=r"w holds 3\.4028\d?e\+38, more than BFLOAT16 can"):
        to_half(ir.tensor(np.float32([3.4028e38]), name="w"), BF16, name="h").numpy()


def test_a_graph_in_half_precision_leaves_its_large_weights_for_later() -> None:
    value = ir.Value(name="x", shape=ir.Shape([LARGE]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.tensor(noise(LARGE), name="w")
    held = ir.Value(name="w", shape=weight.shape, type=ir.TensorType(weight.dtype), const_value=weight)
    node = ir.Node("", "Mul", [value, held], name="y")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([value], node.outputs, nodes=[node], initializers=[held], opset_imports={"": 18})
    HalfPrecision("fp16", ())(ir.Model(graph, ir_version=10))
    assert isinstance(graph.initializers["w.fp16"].const_value, ir.LazyTensor)
