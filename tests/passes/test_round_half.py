"""Half precision that is executed: every result is rounded, and ONNX Runtime does not take it back."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.contracts.parity import measure_parity
from refdiff.contracts.session import Array
from refdiff.engines.check_session import CheckSession
from refdiff.engines.ort import OrtSession
from refdiff.passes.half_precision import HalfPrecision
from refdiff.passes.round_half import HALVES, RoundHalf, rounded_model
from tests.support.graph_files import link_away
from tests.support.small_graphs import BUNDLE, half_graph, miniature_graph, noise, small_graph

BODY = "a = MatMul(x, w) b = Add(a, bias) c = Softmax(b) y = MatMul(c, v)"
WEIGHTS = {"w": noise(32, 24, seed=1), "bias": noise(24, seed=2), "v": noise(24, 16, seed=3)}
FEED = {"x": noise(8, 32, seed=4)}
SPEC = GraphSpec("net", (TensorSpec("x", "float32", (8, 32)),), (TensorSpec("y", "float32", (8, 16)),))


def network() -> ir.Model:
    return HalfPrecision("fp16", ())(small_graph("float[8, 32] x => float[8, 16] y", BODY, WEIGHTS))


def by_hand() -> Array:
    """Each node in float32, its result rounded; numpy alone."""

    def rounded(values: Array) -> Array:
        return values.astype(np.float16).astype(np.float32)

    x, w, bias, v = (rounded(each) for each in (FEED["x"], WEIGHTS["w"], WEIGHTS["bias"], WEIGHTS["v"]))
    logits = rounded(rounded(x @ w) + bias)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return rounded(rounded(powers / powers.sum(-1, keepdims=True)) @ v)


def run(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    return CheckSession(ir.to_proto(model).SerializeToString(), folder=BUNDLE).run(feeds)


def one_step_apart(got: Array, expected: Array) -> bool:
    """Sums in another order may round to the neighbour, rarely."""
    step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32)
    return bool((np.abs(got - expected) <= step).all() and (got == expected).mean() > 0.97)


def test_results_are_those_of_numpy_rounding_after_each_node() -> None:
    model = network()
    RoundHalf()(model)
    result = run(model, FEED)["y"]
    assert one_step_apart(result, by_hand())
    exact = run(small_graph("float[8, 32] x => float[8, 16] y", BODY, WEIGHTS), FEED)["y"]
    assert not one_step_apart(exact.astype(np.float16).astype(np.float32), by_hand())


def test_without_the_pass_this_processor_skips_roundings() -> None:
    plain = run(network(), FEED)["y"]
    assert not np.array_equal(plain, by_hand())


@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"])
def test_onnx_runtime_keeps_the_roundings_at_every_level(level: str) -> None:
    model = network()
    RoundHalf()(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert one_step_apart(session.run(None, FEED)[0], by_hand())


def test_the_back_end_rounds_what_lies_in_a_file(tmp_path: Path) -> None:
    ir.save(network(), tmp_path / "net.onnx", external_data="net.onnx.data", size_threshold_bytes=16)
    session = OrtSession(tmp_path / "net.onnx", SPEC, backend="ort-rounded", threads=1)
    assert one_step_apart(session.run(FEED)["y"], by_hand())
    serialised = rounded_model(tmp_path / "net.onnx")
    assert one_step_apart(CheckSession(serialised, folder=tmp_path).run(FEED)["y"], by_hand())


def test_types_that_a_file_leaves_out_are_found_again(tmp_path: Path) -> None:
    model = network()
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type, value.shape = None, None
    ir.save(model, tmp_path / "net.onnx")
    assert one_step_apart(CheckSession(rounded_model(tmp_path / "net.onnx")).run(FEED)["y"], by_hand())


def test_overflow_becomes_infinite() -> None:
    body = "a = Mul(x, x) b = Sqrt(a) y = Neg(b)"
    model = HalfPrecision("fp16", ())(small_graph("float[3] x => float[3] y", body))
    RoundHalf()(model)
    assert run(model, {"x": np.float32([300.0, 16.0, 1e-5])})["y"].tolist() == [-np.inf, -16.0, 0.0]


def test_an_fp32_graph_is_unchanged() -> None:
    model = miniature_graph("clip_text")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    RoundHalf()(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_no_node_computes_in_half_precision_any_more(half: str) -> None:
    model, _ = half_graph("sam_decoder", half)
    names = {value.name for node in model.graph for value in node.outputs}
    RoundHalf()(model)
    for node in model.graph:
        if node.op_type != "Cast":
            assert not {value.dtype for value in (*node.inputs, *node.outputs) if value is not None} & HALVES
    assert names <= {value.name for node in model.graph for value in node.outputs}


def test_inputs_and_outputs_in_half_precision_keep_names_and_types() -> None:
    model = small_graph("float16[2] x => float16[2] y, float16[2] z", "y = Relu(x) z = Add(y, x)", opset=19)
    RoundHalf()(model)
    results = run(model, {"x": np.float16([2048.0, 3.0])})
    assert {name: (str(values.dtype), values.tolist()) for name, values in results.items()} == {
        "y": ("float16", [2048.0, 3.0]),
        "z": ("float16", [4096.0, 6.0]),
    }


def test_integers_pass_untouched() -> None:
    model = small_graph("float[3] x => int64[1] y", "a = Relu(x) y = ArgMax <keepdims = 1> (a)")
    HalfPrecision("fp16", ())(model)
    RoundHalf()(model)
    assert run(model, {"x": np.float32([0.0, 2.0, 1.0])})["y"].tolist() == [1]


@pytest.mark.slow
def test_numpys_own_half_precision_arithmetic_agrees_on_a_whole_graph(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    ir.save(half_graph("clip_text")[0], tmp_path / "g.onnx")
    feeds, records = open_bundle(BUNDLE, verify="size").golden()["clip_text"]
    theirs = ReferenceEvaluator(str(tmp_path / "g.onnx")).run(None, dict(feeds))[0]
    ours = CheckSession(rounded_model(tmp_path / "g.onnx")).run(feeds)["vector"]
    assert measure_parity(ours, theirs).error < 2e-3
    single = records["vector"]
    assert 0.5 < measure_parity(ours, single).error / measure_parity(theirs, single).error < 2.0


def test_a_graph_whose_data_file_has_hard_links_is_rounded_and_run(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    ir.save(half_graph("clip_text")[0], tmp_path / "cache" / "g.onnx", external_data="g.data")
    path = link_away(tmp_path / "cache" / "g.onnx", tmp_path / "installed")
    feeds, _ = open_bundle(BUNDLE, verify="size").golden()["clip_text"]
    expected = CheckSession(rounded_model(path), folder=path.parent).run(feeds)["vector"]
    assert np.isfinite(expected).all()
