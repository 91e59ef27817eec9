"""Ranges, Q/DQ and SmoothQuant: which nodes, which axes, which scales, and what comes out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.ranges import Histogram, collect_ranges, smoothing_exponents
from refdiff.calibration.recipes import METHODS
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.inspection import MINIATURES, find_bundle
from refdiff.contracts.parity import correlation
from refdiff.contracts.recipe import Quantized, match_rules
from refdiff.errors import InputError
from refdiff.passes.quantizable import (
    choose_eight_bit_nodes,
    data_inputs,
    default_excluded,
    default_weights_alone,
    output_axis,
    quantizable_nodes,
)
from refdiff.passes.quantize import TYPES, Quantize, quantize_weight, scale_for
from refdiff.passes.smooth_quant import SmoothQuant, smoothable_tensors
from tests.support.small_graphs import (
    BUNDLE,
    MINIATURE,
    miniature_graph,
    node,
    noise,
    outputs,
    small_graph,
)

INT8 = TYPES["int8"]


def quantized(nodes, ranges, kind="int8", smoothing=None):
    return Quantized(type=kind, nodes=tuple(nodes), ranges=ranges, method="minmax", smoothing=smoothing or {})


@given(st.floats(1e-12, 1e4), st.sampled_from(["int8", "fp8"]))
def test_a_scale_is_a_float16_value_that_cuts_nothing_off(reach, kind):
    scale = float(scale_for(np.array(reach), TYPES[kind]))
    assert np.float16(scale) == scale
    assert scale * TYPES[kind].largest >= reach
    smallest = float(np.finfo(np.float16).smallest_subnormal)
    assert scale <= max(reach / TYPES[kind].largest * 1.001 + smallest, smallest)


@given(hnp.arrays(np.float32, (4, 5), elements=st.floats(-3, 3, width=32)), st.integers(0, 1))
def test_a_weight_comes_back_within_half_a_step_of_its_channel(values, axis):
    tensor, scales = quantize_weight(ir.tensor(values), INT8, axis, name="w")
    steps = tensor.numpy().astype(np.float64)
    across = scales.reshape([-1 if index == axis else 1 for index in range(2)])
    assert steps.min() >= -127
    assert np.abs(steps * across - values).max() <= across.max() / 2 + 1e-9


def test_the_eight_bit_floats_are_those_of_e4m3():
    values = np.array([[448.0, 1.0, -0.3, 0.0]], np.float32).T
    tensor, scales = quantize_weight(ir.tensor(values), TYPES["fp8"], 1, name="w")
    assert tensor.dtype == ir.DataType.FLOAT8E4M3FN
    np.testing.assert_allclose(tensor.numpy().astype(np.float32) * scales, [[448.0], [1.0], [-0.3125], [0.0]])


def uneven(shape, axis):
    """Weights whose output channels differ a thousandfold: one scale for all would lose the small ones."""
    across = [-1 if index == axis else 1 for index in range(len(shape))]
    return noise(*shape) * np.geomspace(1e-3, 1.0, shape[axis], dtype=np.float32).reshape(across)


OPERATORS = {
    "MatMul": ("float[2,6] x => float[2,5] y", "y = MatMul(x, w)", uneven((6, 5), 1), (2, 6)),
    "Gemm": ("float[2,6] x => float[2,5] y", "y = Gemm(x, w)", uneven((6, 5), 1), (2, 6)),
    "Gemm transposed": (
        "float[2,6] x => float[2,5] y",
        "y = Gemm<transB=1>(x, w)",
        uneven((5, 6), 0),
        (2, 6),
    ),
    "Conv": (
        "float[1,6,4,4] x => float[1,5,4,4] y",
        "y = Conv<pads=[1,1,1,1]>(x, w)",
        uneven((5, 6, 3, 3), 0),
        (1, 6, 4, 4),
    ),
    "ConvTranspose": (
        "float[1,6,4,4] x => float[1,5,8,8] y",
        "y = ConvTranspose<strides=[2,2]>(x, w)",
        uneven((6, 5, 2, 2), 1),
        (1, 6, 4, 4),
    ),
}


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_keeps_its_small_output_channels(operator, kind):
    signature, body, weight, shape = OPERATORS[operator]
    model, feeds = small_graph(signature, body, {"w": weight}), {"x": noise(*shape, seed=1)}
    expected = outputs(model, feeds)["y"]
    assert quantizable_nodes(model.graph) == ("y",)
    reach = {"x": float(np.abs(feeds["x"]).max())}
    got = outputs(Quantize(quantized(["y"], reach, kind), ["y"])(model), feeds)["y"]
    channels = [np.moveaxis(each, 1, 0).reshape(5, -1) for each in (got, expected)]
    for mine, theirs in zip(*channels, strict=True):
        assert correlation(mine, theirs) > 0.995
    assert np.abs(got - expected).max() > 0


def test_what_is_no_product_with_a_constant_weight_is_not_quantizable():
    model = small_graph(
        "float[2,4,4] x, float[2,4,4] z => float[2,4,4] y",
        "a = MatMul(x, z) b = Add(a, x) c = MatMul(b, w3) d = MatMul(w3, c) y = MatMul(d, w)",
        {"w": noise(4, 4), "w3": noise(2, 4, 4)},
    )
    assert quantizable_nodes(model.graph) == ("y",)


def test_one_pair_of_nodes_serves_all_quantized_readers_and_no_others():
    model = small_graph(
        "float[2,4] x => float[2,4] y",
        "a = MatMul(x, v) b = MatMul(x, w) c = Add(a, x) y = Add(b, c)",
        {"v": noise(4, 4), "w": noise(4, 4, seed=1)},
    )
    Quantize(quantized(["a", "b"], {"x": 3.0}), ["a", "b"])(model)
    kinds = [each.op_type for each in model.graph]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 3  # the input, and two weights
    assert node(model, "c").inputs[1].name == "x"
    assert node(model, "a").inputs[0] is node(model, "b").inputs[0]
    assert set(model.graph.initializers) >= {"v.int8", "w.int8"}
    assert not {"v", "w"} & set(model.graph.initializers)


def test_zero_points_are_zero_and_say_the_type():
    for kind in ("int8", "fp8"):
        model = small_graph("float[2,4] x => float[2,4] y", "y = MatMul(x, w)", {"w": noise(4, 4)})
        Quantize(quantized(["y"], {"x": 3.0}, kind), ["y"])(model)
        zero = model.graph.initializers[f"zero.{kind}"]
        assert zero.dtype == TYPES[kind].dtype
        assert float(zero.const_value.numpy()) == 0.0
        assert model.opset_imports[""] >= 19


def test_a_data_input_without_a_range_is_named():
    model = small_graph("float[2,4] x => float[2,4] y", "y = MatMul(x, w)", {"w": noise(4, 4)})
    with pytest.raises(InputError, match="no range for x"):
        Quantize(quantized(["y"], {}), ["y"])(model)


def test_a_magnitude_beyond_the_range_is_cut_off_at_it():
    model = small_graph(
        "float[1,1] x => float[1,1] y", "y = MatMul(x, w)", {"w": np.ones((1, 1), np.float32)}
    )
    Quantize(quantized(["y"], {"x": 2.0}), ["y"])(model)
    got = outputs(model, {"x": np.full((1, 1), 50.0, np.float32)})["y"]
    np.testing.assert_allclose(got, 2.0, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MINIATURE if name != "unet_taps"])
def test_the_miniature_keeps_its_answers_in_eight_bits(name):
    feeds, _ = open_bundle(BUNDLE).golden()[name]
    model = miniature_graph(name)
    expected = outputs(model, feeds)
    nodes = choose_eight_bit_nodes(model.graph, fp32_rules=(), excluded=default_excluded(name, model.graph))
    ranges = collect_ranges(BUNDLE / f"{name}.onnx", [feeds], data_inputs(model.graph, nodes))
    got = outputs(Quantize(quantized(nodes, ranges), nodes)(model), feeds)
    for output, values in expected.items():
        assert correlation(got[output], values) > 0.998
        assert (np.abs(got[output] - values).max() > 0) == bool(nodes)


def test_the_tapped_q_and_k_are_left_alone_and_the_other_q_and_k_are_not():
    spec = open_bundle(BUNDLE).spec.diffusion
    graph = miniature_graph("unet").graph
    known = frozenset(each.name for each in graph)
    left = match_rules(default_excluded("unet", graph), known, where="unet")
    tapped = {
        f"unet.{layer}.transformer_blocks.0.attn2.{side}/MatMul"
        for layer in spec.tapped_layers
        for side in ("to_q", "to_k")
    }
    assert tapped <= left
    queries = {name for name in quantizable_nodes(graph) if name.endswith((".to_q/MatMul", ".to_k/MatMul"))}
    assert queries - tapped
    assert not (queries - tapped) & left


def test_of_sam_s_encoder_the_first_block_and_what_follows_a_gelu_hold_their_weight_only():
    graph = miniature_graph("sam_encoder").graph
    nodes = choose_eight_bit_nodes(graph, fp32_rules=(), excluded=default_excluded("sam_encoder", graph))
    alone = match_rules(default_weights_alone("sam_encoder", nodes), nodes, where="sam_encoder")
    for name in nodes:
        assert (name in alone) == (".blocks.0." in name or name.endswith(".mlp.lin2/MatMul"))
    assert 0 < len(alone) < len(nodes)


@pytest.mark.parametrize("bundle", MINIATURES)
def test_the_neck_and_the_later_convolutions_of_sam_s_encoder_have_no_eight_bits(bundle):
    graph = ir.load(find_bundle(bundle).graph_path("sam_encoder")).graph
    nodes = choose_eight_bit_nodes(graph, fp32_rules=(), excluded=default_excluded("sam_encoder", graph))
    convolutions = [name for name in nodes if name.endswith("/Conv")]
    assert all(".stages.0.blocks." in name for name in convolutions)
    alone = match_rules(default_weights_alone("sam_encoder", nodes), nodes, where="sam_encoder")
    assert set(convolutions) <= alone
    assert 0 < len(alone) < len(nodes)


def test_a_rule_that_fits_no_node_of_another_architecture_is_left_out():
    (rule,) = default_weights_alone("sam_encoder", ["layers.1.mlp.fc2/MatMul", "layers.0/MatMul"])
    assert rule.nodes == ("*.mlp.fc2/*",)
    assert default_weights_alone("clip_text", ["blocks.0.mlp.lin2/MatMul"]) == ()


def test_the_axis_of_output_channels_follows_the_operator():
    model = small_graph("float[2,4] x => float[2,3] y", "y = Gemm<transB=1>(x, w)", {"w": noise(3, 4)})
    assert output_axis(node(model, "y")) == 0


def test_entropy_cuts_a_lonely_giant_off_and_keeps_an_even_spread():
    rng = np.random.default_rng(0)
    lonely, even = Histogram(), Histogram()
    lonely.add(np.concatenate([rng.standard_normal(200_000), [1000.0]]))
    even.add(rng.uniform(-1, 1, 200_000))
    assert lonely.entropy_range() < 200.0
    assert even.entropy_range() > 0.9


def test_a_tensor_of_zeros_has_no_reach_and_still_a_scale():
    histogram = Histogram()
    histogram.add(np.zeros(10))
    assert histogram.entropy_range() == histogram.largest == 0.0
    assert scale_for(np.array(0.0), INT8) > 0


def saved(tmp_path, model):
    path = tmp_path / "g.onnx"
    ir.save(model, path)
    return path


def test_ranges_cover_all_feeds_and_refuse_what_is_not_finite(tmp_path):
    path = saved(tmp_path, small_graph("float[2] x => float[2] y", "y = Mul(x, x)"))
    feeds = [{"x": np.array([1, -3], np.float32)}, {"x": np.array([2, 0.5], np.float32)}]
    assert collect_ranges(path, feeds, ["y"], method="minmax") == {"y": 9.0}
    for method in METHODS:
        assert 0 < collect_ranges(path, feeds, ["y"], method=method)["y"] <= 9.0
    with pytest.raises(InputError, match="y holds NaN or infinity in fp32, on record 0"):
        collect_ranges(path, [{"x": np.array([1e30, 0], np.float32)}], ["y"])
    with pytest.raises(InputError, match="never run"):
        collect_ranges(path, [], ["y"])
    with pytest.raises(InputError, match="unknown method 'mean'"):
        collect_ranges(path, feeds, ["y"], method="mean")


def normed(other_reader=""):
    body = f"n = LayerNormalization<axis=-1>(x, scale, bias) a = MatMul(n, v) b = MatMul(n, w) {other_reader}"
    last = "y = Add(a, b)" if not other_reader else "c = Add(a, b) y = Add(c, d)"
    giant = np.array([1, 1, 1, 1, 1, 1, 1, 100], np.float32)  # one channel reaches far, its weights do not
    weights = {
        "scale": giant,
        "bias": noise(8),
        "v": noise(8, 5) / giant[:, None],
        "w": noise(8, 5, seed=1) / giant[:, None],
    }
    return small_graph("float[4,8] x => float[4,5] y", f"{body} {last}", weights)


def test_smoothing_changes_nothing_in_floating_point_and_helps_in_eight_bits(tmp_path):
    feeds = {"x": noise(4, 8, seed=2)}
    expected = outputs(normed(), feeds)["y"]
    path = saved(tmp_path, normed())
    powers = smoothing_exponents(path, [feeds], ["a", "b"])
    assert set(powers) == {"n"}
    np.testing.assert_allclose(
        outputs(SmoothQuant(powers, ["a", "b"])(normed()), feeds)["y"], expected, rtol=1e-6
    )
    errors = []
    for smoothing in ({}, powers):
        model = SmoothQuant(smoothing, ["a", "b"])(normed())
        reach = collect_ranges(path, [feeds], ["n"], method="minmax", smoothing=smoothing)
        got = outputs(Quantize(quantized(["a", "b"], reach), ["a", "b"])(model), feeds)["y"]
        errors.append(float(np.abs(got - expected).mean()))
    assert errors[1] < errors[0] / 2


def test_a_norm_that_others_read_is_not_smoothed():
    model = normed("d = Identity(a)")
    assert set(smoothable_tensors(model.graph, ["a", "b"])) == {"n"}
    read_elsewhere = small_graph(
        "float[4,8] x => float[4,8] y",
        "n = LayerNormalization<axis=-1>(x, scale) a = MatMul(n, w) y = Add(a, n)",
        {"scale": noise(8), "w": noise(8, 8)},
    )
    assert smoothable_tensors(read_elsewhere.graph, ["a"]) == {}


def test_a_recipe_that_smooths_what_is_partly_quantized_is_refused():
    with pytest.raises(InputError, match="smooths n, but not all that reads it is quantized"):
        SmoothQuant({"n": (0,) * 8}, ["a"])(normed())


def test_smoothing_of_what_is_not_quantized_at_all_is_left_out():
    model = SmoothQuant({"n": (3,) * 8}, [])(normed())
    assert not any("smoothed" in name for name in model.graph.initializers)
