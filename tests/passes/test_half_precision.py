"""The half-precision pass: which tensors get which type, and where the casts are."""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.parity import measure_parity, select_recorded
from refdiff.contracts.recipe import Half
from refdiff.engines.check_session import CheckSession
from refdiff.errors import InputError
from refdiff.passes.graph_files import check_contract
from refdiff.passes.half_precision import HalfPrecision, Weights
from refdiff.passes.keep_fp32 import MOVES
from tests.support.small_graphs import (
    BUNDLE,
    FLOATS,
    MINIATURE,
    casts,
    fp32_nodes_of,
    half_graph,
    miniature_graph,
    node,
    noise,
    outputs,
    small_graph,
)

HALVES: tuple[Half, ...] = ("fp16", "bf16")
TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
SINGLE = ir.DataType.FLOAT

every_graph = pytest.mark.parametrize(("name", "half"), list(itertools.product(MINIATURE, HALVES)))


@functools.cache
def converted(name: str, half: Half) -> tuple[ir.Model, frozenset[str]]:
    """Read it, do not change it."""
    return half_graph(name, half)


def float_inputs(each: ir.Node) -> Iterator[ir.Value]:
    """Those that an operator computes with; Resize's scales are float32 by definition."""
    if each.op_type not in ("Shape", "Size", "Cast"):
        for index, value in enumerate(each.inputs):
            if value is not None and value.dtype in FLOATS and not (each.op_type == "Resize" and index):
                yield value


@every_graph
def test_the_contract_keeps_its_types(name: str, half: Half, tmp_path: Path) -> None:
    model, _ = converted(name, half)
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(ir.to_proto(without_weights(model)).SerializeToString())
    check_contract(path, graph_contract(open_bundle(BUNDLE, verify="size").spec)[name])


def without_weights(model: ir.Model) -> ir.Model:
    copy = model.clone()
    for value in copy.graph.initializers.values():
        value.const_value = None
    copy.graph.initializers.clear()
    return copy


@every_graph
def test_every_tensor_has_the_type_of_its_node(name: str, half: Half) -> None:
    model, fp32 = converted(name, half)
    for each in model.graph:
        if each.op_type == "Cast" and each.outputs[0].dtype in FLOATS and each.inputs[0].dtype in FLOATS:
            continue
        expected = SINGLE if each.name in fp32 else TYPES[half]
        made = {value.dtype for value in each.outputs if value.dtype in FLOATS}
        read = {value.dtype for value in float_inputs(each)}
        assert made | read <= {expected}, each.name


@pytest.mark.slow
@every_graph
def test_onnx_finds_the_graph_valid(name: str, half: Half, tmp_path: Path) -> None:
    model = converted(name, half)[0].clone()
    ir.save(model, tmp_path / "graph.onnx", external_data="graph.onnx.data", size_threshold_bytes=1024)
    onnx.checker.check_model(tmp_path / "graph.onnx", full_check=True)


@every_graph
def test_every_cast_is_needed(name: str, half: Half) -> None:
    model, _ = converted(name, half)
    added = [each for each in casts(model) if each.inputs[0].dtype in FLOATS]
    assert added
    for each in added:
        value, cast = each.inputs[0], each.outputs[0]
        assert {value.dtype, cast.dtype} == {SINGLE, TYPES[half]}
        assert value.producer() is None or value.producer().op_type != "Cast"
        assert cast.uses() or cast.is_graph_output()
        assert not value.is_initializer(), "a stored weight has the type its readers want"
    pairs = Counter((each.inputs[0].name, each.outputs[0].dtype) for each in added)
    assert set(pairs.values()) == {1}, "a tensor is cast once in each direction"


@every_graph
def test_no_cast_undoes_another_across_nodes_that_only_move_values(name: str, half: Half) -> None:
    model, _ = converted(name, half)
    for each in casts(model):
        behind = each.inputs[0].producer()
        while behind is not None and behind.op_type in MOVES:
            sources = list(float_inputs(behind))
            behind = sources[0].producer() if len(sources) == 1 else None
        assert behind is None or behind.op_type != "Cast", each.name


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
def test_weights_take_half_the_room(half: Half) -> None:
    before = sum(weight_bytes(miniature_graph(name)) for name in MINIATURE)
    after = sum(weight_bytes(converted(name, half)[0]) for name in MINIATURE)
    assert 0.5 <= after / before < 0.52


def weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def test_a_written_file_is_half_as_large(tmp_path: Path) -> None:
    model, _ = half_graph("clip_text")
    ir.save(
        model, tmp_path / "clip_text.onnx", external_data="clip_text.onnx.data", size_threshold_bytes=1024
    )
    sizes = [sum(p.stat().st_size for p in folder.glob("clip_text.onnx*")) for folder in (tmp_path, BUNDLE)]
    assert sizes[0] <= 0.52 * sizes[1]


def test_two_conversions_write_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        ir.save(
            half_graph("sam_decoder")[0], folder / "g.onnx", external_data="g.data", size_threshold_bytes=1024
        )
    for name in ("g.onnx", "g.data"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "half"), [("clip_text", "fp16"), ("clip_text", "bf16"), ("sam_decoder", "fp16")]
)
def test_weights_cast_in_the_graph_give_the_same_bits_as_stored_ones(name: str, half: Half) -> None:
    feeds, _ = open_bundle(BUNDLE, verify="size").golden()[name]
    stored = outputs(converted(name, half)[0], feeds)
    model = miniature_graph(name)
    HalfPrecision(half, fp32_nodes_of(model, half), weights="cast")(model)
    assert all(value.dtype not in TYPES.values() for value in model.graph.initializers.values())
    trial = outputs(model, feeds)
    for key, values in stored.items():
        np.testing.assert_array_equal(values, trial[key])


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", [name for name in MINIATURE if name != "unet_taps"])  # unet has its record
def test_golden_records_hold_with_every_result_rounded(name: str, half: Half) -> None:
    feeds, records = open_bundle(BUNDLE, verify="size").golden()[name]
    results = outputs(converted(name, half)[0], feeds)
    least = {"fp16": 0.99999, "bf16": 0.9995}[half]  # measured: 0.999999 and 0.9999 or better
    for key, record in records.items():
        assert measure_parity(select_recorded(results[key], record), record).correlation > least, key


def test_names_of_nodes_and_tensors_stay() -> None:
    before, (after, _) = miniature_graph("sam_decoder"), converted("sam_decoder", "fp16")
    assert {each.name for each in before.graph} <= {each.name for each in after.graph}
    tensors = {value.name for each in after.graph for value in each.outputs}
    assert {value.name for each in before.graph for value in each.outputs} <= tensors


@pytest.mark.parametrize(("half", "opset"), [("fp16", 19), ("bf16", 22)])
def test_the_opset_is_the_first_with_the_operators_types(half: Half, opset: int) -> None:
    assert converted("vae_encoder", half)[0].opset_imports[""] == opset
    newer = small_graph("float[2] x => float[2] y", "y = Relu(x)", opset=23)
    assert HalfPrecision(half, ())(newer).opset_imports[""] == 23


def test_a_weight_read_in_both_precisions_is_stored_in_both() -> None:
    model = small_graph(
        "float[2, 3] x => float[2, 3] y", "a = Mul(x, w) b = Exp(a) y = Mul(b, w)", {"w": noise(3)}
    )
    HalfPrecision("fp16", ("b", "y"))(model)
    kinds = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert kinds == {"w": SINGLE, "w.fp16": ir.DataType.FLOAT16}
    assert [value.name for value in node(model, "a").inputs] == ["x.float16", "w.fp16"]
    assert node(model, "y").inputs[1].name == "w"


def test_a_weight_read_twice_in_half_precision_is_stored_once() -> None:
    model = small_graph("float[2, 3] x => float[2, 3] y", "a = Mul(x, w) y = Add(a, w)", {"w": noise(3)})
    HalfPrecision("fp16", ())(model)
    assert list(model.graph.initializers) == ["w.fp16"]


@pytest.mark.parametrize("weights", ["stored", "cast"])
def test_single_precision_on_half_weights_rounds_the_weight_only(weights: Weights) -> None:
    large, feeds = noise(16, 16), {"x": noise(2, 16)}
    model = small_graph("float[2, 16] x => float[2, 16] y", "y = MatMul(x, w)", {"w": large})
    HalfPrecision("fp16", ("y",), half_weights=("y",), weights=weights)(model)
    stored = {"stored": ir.DataType.FLOAT16, "cast": SINGLE}[weights]
    assert [value.dtype for value in model.graph.initializers.values()] == [stored]
    expected = feeds["x"] @ large.astype(np.float16).astype(np.float32)
    got = outputs(model, feeds)["y"]
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-6)
    assert not np.allclose(got, feeds["x"] @ large, rtol=1e-6, atol=1e-6)


def test_a_small_weight_of_single_precision_is_not_worth_a_cast() -> None:
    model = small_graph("float[2, 3] x => float[2, 3] y", "y = Mul(x, w)", {"w": noise(3)})
    HalfPrecision("fp16", ("y",), half_weights=("y",))(model)
    assert [value.dtype for value in model.graph.initializers.values()] == [SINGLE]
    assert not casts(model)


def test_an_input_read_in_both_precisions_is_cast_for_one_of_them() -> None:
    model = small_graph("float[2] x => float[2] y", "a = Relu(x) b = Exp(x) y = Add(a, b)")
    HalfPrecision("fp16", ("b", "y"))(model)
    assert node(model, "a").inputs[0].name == "x.float16"
    assert node(model, "b").inputs[0].name == "x"
    assert [(each.inputs[0].name, each.outputs[0].dtype.name) for each in casts(model)] == [
        ("x", "FLOAT16"),
        ("a", "FLOAT"),
    ]


def test_an_output_of_an_fp32_region_needs_no_cast() -> None:
    model = small_graph("float[2] x => float[2] y", "y = Exp(x)")
    HalfPrecision("fp16", ("y",))(model)
    assert not casts(model)
    assert model.graph.outputs[0].producer().op_type == "Exp"


def test_an_output_that_an_fp32_region_reads_too_is_cast_once() -> None:
    model = small_graph("float[2] x => float[2] y, float[2] z", "y = Relu(x) z = Exp(y)")
    HalfPrecision("fp16", ("z",))(model)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert node(model, "z").inputs[0] is model.graph.outputs[0]
    assert [each.outputs[0].name for each in casts(model)] == ["x.float16", "y"]


def test_an_output_that_is_read_on_in_half_precision_is_rounded_once() -> None:
    model = small_graph("float[2] x => float[2] y, float[2] z", "y = Relu(x) z = Neg(y)")
    HalfPrecision("fp16", ())(model)
    results = outputs(model, {"x": np.float32([1.0001, 2.0003])})
    np.testing.assert_array_equal(results["z"], -results["y"])
    assert node(model, "z").inputs[0].name == "y.fp16"


def test_an_input_or_weight_that_is_also_an_output_stays_as_it_is() -> None:
    model = small_graph("float[2] x => float[2] y", "y = Mul(x, w)", {"w": noise(2)})
    model.graph.outputs.extend([model.graph.inputs[0], model.graph.initializers["w"]])
    HalfPrecision("fp16", ())(model)
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [
        ("y", SINGLE),
        ("x", SINGLE),
        ("w", SINGLE),
    ]
    assert set(model.graph.initializers) == {"w", "w.fp16"}


@pytest.mark.parametrize("scales", ["", "s = Mul(w, w)"], ids=["weight", "computed"])
def test_the_scales_of_a_resize_stay_single(scales: str) -> None:
    model = small_graph(
        "float[1, 1, 2, 2] x => float[1, 1, 4, 4] y",
        f'{scales} y = Resize <mode = "nearest"> (x, , s)',
        {"w" if scales else "s": np.float32([1, 1, 2**0.5, 2**0.5] if scales else [1, 1, 2, 2])},
    )
    HalfPrecision("fp16", ())(model)
    assert node(model, "y").inputs[0].dtype == ir.DataType.FLOAT16
    assert node(model, "y").inputs[2].dtype == SINGLE


def test_a_cast_of_the_graphs_own_makes_what_its_readers_want() -> None:
    model = small_graph("int32[2] x => float[2] y", "a = Cast <to = 1> (x) y = Relu(a)")
    HalfPrecision("fp16", ())(model)
    assert node(model, "a").attributes["to"].as_int() == ir.DataType.FLOAT16
    assert outputs(model, {"x": np.int32([3, -4])})["y"].tolist() == [3.0, 0.0]


def test_an_integer_keeps_its_digits_on_the_way_to_an_fp32_region() -> None:
    model = small_graph(
        "int32[1] x => float[1] y", "a = Cast <to = 1> (x) y = Mul(a, w)", {"w": np.ones(1, "f4")}
    )
    HalfPrecision("fp16", ("y",))(model)
    assert len(casts(model)) == 1
    assert outputs(model, {"x": np.int32([40_961])})["y"].tolist() == [40_961.0]


def test_an_integer_read_in_both_precisions_is_cast_to_each_directly() -> None:
    model = small_graph(
        "int32[1] x => float[1] y, float[1] z", "a = Cast <to = 1> (x) y = Relu(a) z = Exp(a)"
    )
    HalfPrecision("fp16", ("z",))(model)
    assert [each.inputs[0].name for each in casts(model)][:2] == ["x", "x"]


def test_a_cast_to_integers_reads_what_there_is() -> None:
    model = small_graph("float[1] x => int32[1] y", "y = Cast <to = 6> (x)")
    HalfPrecision("fp16", ())(model)
    assert outputs(model, {"x": np.float32([40_961.0])})["y"].tolist() == [40_961]


def test_a_shape_is_read_without_a_cast() -> None:
    model = small_graph("float[3] x => int64[1] y", "y = Shape(x)")
    assert not casts(HalfPrecision("fp16", ())(model))


def test_a_constant_node_stays_single_and_is_cast() -> None:
    model = small_graph(
        "float[2] x => float[2] y", "c = Constant <value = float[2] {1.0, 2.5}> () y = Mul(x, c)"
    )
    HalfPrecision("fp16", ())(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert outputs(model, {"x": np.float32([2, 2])})["y"].tolist() == [2.0, 5.0]


def test_control_flow_is_refused() -> None:
    model = small_graph(
        "bool c, float[2] x => float[2] y",
        "y = If (c) <then_branch = g1 () => (float[2] a) { a = Relu(x) }, "
        "else_branch = g2 () => (float[2] b) { b = Neg(x) }>",
    )
    with pytest.raises(InputError, match=r"y \(If\) holds a graph of its own"):
        HalfPrecision("fp16", ())(model)


def test_one_pass_serves_many_graphs() -> None:
    half = HalfPrecision("fp16", ("b",))
    for _ in range(3):
        model = half(small_graph("float[2] x => float[2] y", "a = Relu(x) b = Exp(a) y = Neg(b)"))
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        assert len(casts(model)) == 4


@pytest.mark.parametrize("size", [2, 100, 100_000])
def test_a_weight_too_large_for_fp16_is_named(size: int, tmp_path: Path) -> None:
    weight = np.ones(size, np.float32)
    weight[1] = -70_000.0
    model = small_graph(f"float[{size}] x => float[{size}] y", "y = Mul(x, w)", {"w": weight})
    with pytest.raises(InputError, match=r"w holds 70000, more than FLOAT16 can; keep its nodes in fp32"):
        ir.save(
            HalfPrecision("fp16", ())(model),
            tmp_path / "g.onnx",
            external_data="g",
            size_threshold_bytes=1024,
        )


@pytest.mark.parametrize(("half", "fp32"), [("bf16", ()), ("fp16", ("y",))])
def test_a_weight_too_large_for_fp16_is_none_for_bf16_or_an_fp32_node(
    half: Half, fp32: tuple[str, ...]
) -> None:
    model = small_graph("float[2] x => float[2] y", "y = Mul(x, w)", {"w": np.float32([1.0, -65_536.0])})
    HalfPrecision(half, fp32)(model)
    assert outputs(model, {"x": np.float32([1, 1])})["y"].tolist() == [1.0, -65_536.0]


def test_bf16_rounds_to_eight_digits() -> None:
    model = HalfPrecision("bf16", ())(small_graph("float[3] x => float[3] y", "y = Neg(x)"))
    third = outputs(model, {"x": np.float32([1 / 3, 257.0, 1e38])})["y"]
    np.testing.assert_array_equal(third[:2], np.float32([-0.333984375, -256.0]))
    assert np.isfinite(third).all()


def test_an_ordinary_run_of_an_fp16_graph_agrees_too(tmp_path: Path) -> None:
    model, _ = half_graph("clip_text")
    feeds, records = open_bundle(BUNDLE, verify="size").golden()["clip_text"]
    ir.save(model, tmp_path / "g.onnx", external_data="g.data", size_threshold_bytes=1024)
    results = CheckSession(tmp_path / "g.onnx").run(feeds)
    for key, record in records.items():
        assert results[key].dtype == np.float32
        assert measure_parity(select_recorded(results[key], record), record).correlation > 0.9999
