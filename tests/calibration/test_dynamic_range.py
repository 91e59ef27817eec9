"""How near tensors come to the ends of half precision: counts, shares, and planted faults."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.dynamic_range import (
    CHUNK,
    INPUT,
    TYPE_RANGES,
    WEIGHT,
    DynamicRange,
    RangeCounter,
    measure_dynamic_range,
)
from refdiff.contracts.recipe import Half
from refdiff.contracts.session import Array
from tests.support.graph_files import golden_feeds, planted_miniature, saved
from tests.support.planted import overflow
from tests.support.small_graphs import BUNDLE, MINIATURE, miniature_graph, noise, small_graph

HALVES: tuple[Half, ...] = ("fp16", "bf16")
TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}

# From far below the smallest values of half precision to far above its largest.
fp16_values = st.one_of(
    st.just(0.0),
    st.builds(
        lambda sign, power: float(np.float32(sign * 2.0**power)), st.sampled_from([-1, 1]), st.floats(-30, 15)
    ),
)


def measured(
    model: ir.Model, folder: Path, *feeds: dict[str, Array], half: Half = "fp16"
) -> dict[str, DynamicRange]:
    return {each.tensor: each for each in measure_dynamic_range(saved(model, folder), feeds, half)}


def tally(*runs: Array, half: Half = "fp16", chunk: int = CHUNK) -> DynamicRange:
    counted = RangeCounter(TYPE_RANGES[half])
    for values in runs:
        counted.add(np.asarray(values, np.float32), chunk=chunk)
    return counted.result("t", "n", "Op")


@pytest.mark.parametrize("half", HALVES)
def test_the_ends_are_those_of_the_type(half: Half) -> None:
    info, reach = ml_dtypes.finfo(TYPES[half]), TYPE_RANGES[half]
    assert reach.largest == float(info.max)
    assert reach.smallest_normal == float(info.smallest_normal)
    assert reach.smallest == float(info.smallest_subnormal)
    assert reach.rounding == float(info.eps) / 2


@pytest.mark.slow
@given(hnp.arrays(np.float32, st.integers(0, 30), elements=fp16_values))
def test_what_small_values_lose_is_what_a_cast_takes_from_them(values: Array) -> None:
    found = tally(values)
    exact = values.astype(np.float64)
    small = (np.abs(exact) < 2.0**-14) & (exact != 0)
    taken = np.where(small, exact - values.astype(np.float16).astype(np.float64), 0.0)
    whole = float(np.sqrt(np.square(exact).sum()))
    assert found.lost == pytest.approx(float(np.sqrt(np.square(taken).sum())) / (whole or 1.0))
    nonzero = max(int(np.count_nonzero(values)), 1)
    assert found.subnormal == int(small.sum()) / nonzero
    assert found.flushed == int((small & (values.astype(np.float16) == 0)).sum()) / nonzero
    assert found.largest == float(np.abs(exact).max(initial=0.0))


@pytest.mark.slow
@given(hnp.arrays(np.float32, st.integers(1, 30), elements=fp16_values), st.integers(1, 29))
def test_a_large_tensor_is_looked_at_in_parts(values: Array, part: int) -> None:
    parts = tally(values, chunk=part)
    whole = tally(values)
    assert parts.lost == pytest.approx(whole.lost)
    assert (parts.largest, parts.subnormal, parts.flushed, parts.size) == (
        whole.largest,
        whole.subnormal,
        whole.flushed,
        whole.size,
    )


def test_bfloat16_loses_nothing_where_fp16_loses_all() -> None:
    values = noise(100, scale=1e-9)
    assert tally(values).flushed == 1.0
    assert tally(values).lost == 1.0
    assert tally(values, half="bf16").subnormal == tally(values, half="bf16").lost == 0.0
    assert tally(np.float32([1e-39, 1.0]), half="bf16").subnormal == 0.5


def test_the_loss_is_the_worst_runs_and_magnitudes_are_all_runs() -> None:
    small, large = noise(50, scale=1e-7), noise(50, seed=1, scale=100.0)
    both = tally(large, small, large)
    assert both.lost == tally(small).lost > 0.01
    assert both.largest == tally(large).largest
    assert both.size == 150


def test_many_small_values_next_to_large_ones_lose_little() -> None:
    softmax = np.concatenate([np.full(9, 0.111, np.float32), np.full(20, 1e-7, np.float32)])
    found = tally(softmax)
    assert found.subnormal > 0.6
    assert found.lost < 1e-6


def test_what_is_no_number_is_counted_and_left_out() -> None:
    found = tally(np.float32([np.nan, 1.0, -np.inf, np.inf, -3.0]), np.float32([np.nan]))
    assert (found.nan, found.inf, found.size, found.largest) == (2, 2, 6, 3.0)
    assert not found.is_finite
    assert tally(np.float32([1.0])).is_finite


def test_a_tensor_of_zeros_and_an_empty_one_are_near_no_end() -> None:
    for values in (np.zeros(5, np.float32), np.zeros((0, 3), np.float32)):
        found = tally(values)
        assert (found.largest, found.subnormal, found.flushed, found.lost) == (0.0, 0.0, 0.0, 0.0)
        assert found.is_finite


def test_inputs_weights_and_results_come_with_their_makers(tmp_path: Path) -> None:
    model = small_graph(
        "float[2, 3] x, int64[1] i => float[1, 3] y",
        "a = Mul(x, w) norm__b = Neg(a) s = Shape(a) y = Gather(norm__b, i)",
        {"w": noise(3)},
    )
    found = measure_dynamic_range(saved(model, tmp_path), [{"x": noise(2, 3), "i": np.int64([1])}], "fp16")
    assert [(each.tensor, each.node, each.operator) for each in found] == [
        ("x", "", INPUT),
        ("w", "", WEIGHT),
        ("a", "a", "Mul"),
        ("norm__b", "norm/b", "Neg"),
        ("y", "y", "Gather"),
    ]
    assert [each.size for each in found] == [6, 3, 6, 6, 3]


def test_a_constant_is_one_of_the_results(tmp_path: Path) -> None:
    model = small_graph("float[2] x => float[2] y", "c = Constant <value = float[1] {7.0}> () y = Mul(x, c)")
    found = measured(model, tmp_path, {"x": noise(2)})
    assert (found["c"].operator, found["c"].largest) == ("Constant", 7.0)


def test_magnitudes_are_those_of_all_feeds(tmp_path: Path) -> None:
    model = small_graph("float[2] x => float[2] y", "y = Neg(x)")
    found = measured(model, tmp_path, {"x": np.float32([1, -2])}, {"x": np.float32([5, 0])})
    assert found["x"].largest == found["y"].largest == 5.0
    assert found["y"].size == 4


def test_a_planted_overflow_is_seen_at_its_tensor_alone(tmp_path: Path) -> None:
    model = small_graph(
        "float[4] x => float[4] y",
        "a = Mul(x, up) b = Mul(a, down) y = Neg(b)",
        {"up": np.float32([1e5]), "down": np.float32([1e-5])},
    )
    found = measured(model, tmp_path, {"x": np.float32([1, -1.5, 0.5, 0.1])})
    assert {name for name, each in found.items() if each.largest > TYPE_RANGES["fp16"].largest} == {"up", "a"}
    assert found["a"].largest == 150_000.0
    assert found["y"].largest == pytest.approx(1.5)


def test_a_planted_underflow_is_seen_at_its_tensor_alone(tmp_path: Path) -> None:
    model = small_graph(
        "float[4] x => float[4] y", "a = Mul(x, x) b = Mul(a, up) y = Neg(b)", {"up": np.float32([1e4])}
    )
    found = measured(model, tmp_path, {"x": noise(4, scale=3e-4)})
    assert {name for name, each in found.items() if each.flushed > 0} == {"a"}
    assert found["a"].lost > 0.1
    assert found["b"].lost < 1e-3


def test_a_planted_nan_is_counted_from_its_node_on(tmp_path: Path) -> None:
    model = small_graph("float[4] x => float[4] y", "a = Neg(x) b = Sqrt(a) y = Add(b, x)")
    found = measured(model, tmp_path, {"x": np.float32([1, -1, 2, -4])}, {"x": np.float32([-1, -1, -1, 1])})
    assert {name: each.nan for name, each in found.items()} == {"x": 0, "a": 0, "b": 3, "y": 3}


def test_a_planted_infinity_in_a_weight_is_counted(tmp_path: Path) -> None:
    model = small_graph("float[2] x => float[2] y", "y = Div(x, w)", {"w": np.float32([np.inf, -1.0])})
    found = measured(model, tmp_path, {"x": noise(2)})
    assert (found["w"].inf, found["w"].nan, found["y"].is_finite) == (1, 0, True)


@pytest.mark.parametrize("name", ["clip_text", "sd_text"])
def test_every_float_tensor_of_a_real_graph_is_there_once(name: str) -> None:
    graph = miniature_graph(name).graph
    found = measure_dynamic_range(BUNDLE / f"{name}.onnx", [golden_feeds(name)], "fp16")
    floats = [
        value.name
        for value in (
            *graph.inputs,
            *graph.initializers.values(),
            *(value for each in graph for value in each.outputs),
        )
        if value.dtype == ir.DataType.FLOAT
    ]
    assert [each.tensor for each in found] == floats
    assert all(each.is_finite and each.size for each in found)


@pytest.mark.parametrize("name", MINIATURE)
def test_every_tensor_of_the_miniature_has_a_type(name: str) -> None:
    # A tensor without one would pass unseen.
    values = [value for each in miniature_graph(name).graph for value in each.outputs]
    assert all(value.dtype is not None for value in values)


def test_an_overflow_planted_into_the_miniature_is_its_largest_tensor(tmp_path: Path) -> None:
    tensor = "blocks.0.block.mlp.c_proj/Add"
    path = planted_miniature("clip_text", overflow(tensor, half=False), tmp_path)
    found = measure_dynamic_range(path, [golden_feeds("clip_text")], "fp16")
    assert [each.tensor for each in found if each.largest > TYPE_RANGES["fp16"].largest] == [f"{tensor}/up"]


def test_a_document_is_json(tmp_path: Path) -> None:
    model = small_graph("float[2] x => float[2] y", "y = Sqrt(x)")
    (*_, last) = measure_dynamic_range(saved(model, tmp_path), [{"x": np.float32([-1, 4])}], "fp16")
    document = json.loads(json.dumps(last.to_json(), allow_nan=False))
    assert document == {
        "tensor": "y",
        "node": "y",
        "operator": "Sqrt",
        "largest_magnitude": 2.0,
        "subnormal_share": 0.0,
        "flushed_share": 0.0,
        "lost_share": 0.0,
        "nan": 1,
        "inf": 0,
        "size": 2,
    }
