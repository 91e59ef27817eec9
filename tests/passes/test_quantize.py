"""The Q/DQ pass: what it refuses, what it shares, and the whole chain to a file that runs."""

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.ranges import collect_ranges
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.parity import correlation, select_recorded
from refdiff.contracts.recipe import GraphRecipe, Quantized, match_rules
from refdiff.engines.check_session import CheckSession
from refdiff.errors import InputError
from refdiff.passes import quantize as eight_bit_weights
from refdiff.passes.convert import convert_graph
from refdiff.passes.keep_fp32 import close_regions, default_fp32_nodes
from refdiff.passes.quantizable import (
    choose_eight_bit_nodes,
    data_inputs,
    default_excluded,
    quantizable_nodes,
)
from refdiff.passes.quantize import TYPES, Quantize
from refdiff.passes.round_half import rounded_model
from tests.support.small_graphs import (
    BUNDLE,
    MINIATURE,
    miniature_graph,
    node,
    noise,
    outputs,
    small_graph,
)


def quantized(nodes, ranges, kind="int8"):
    return Quantized(type=kind, nodes=tuple(nodes), ranges=ranges, method="minmax")


def product(weight):
    return small_graph("float[2,4] x => float[2,4] y", "y = MatMul(x, w)", {"w": weight})


def chain(second, weight):
    """Two products with one weight."""
    return small_graph("float[2,4] x => float[2,4] y", f"a = MatMul(x, w) y = {second}", {"w": weight})


@pytest.mark.parametrize("second", ["MatMul(a, w)", "Gemm<transB=1>(a, w)"])
def test_a_weight_of_two_products_is_held_once_for_each_axis_it_is_read_along(second):
    weight, feeds = noise(4, 4) * np.geomspace(0.01, 1, 4, dtype=np.float32), {"x": noise(2, 4, seed=1)}
    expected = outputs(chain(second, weight), feeds, ("a", "y"))
    ranges = {"x": float(np.abs(feeds["x"]).max()), "a": float(np.abs(expected["a"]).max())}
    model = Quantize(quantized("ay", ranges), "ay")(chain(second, weight))
    copies = [value for value in model.graph.initializers.values() if value.shape == (4, 4)]
    assert len(copies) == (1 if "MatMul" in second else 2)
    assert correlation(outputs(model, feeds)["y"], expected["y"]) > 0.999


def test_a_weight_that_others_read_as_well_stays_for_them():
    model = Quantize(quantized("a", {"x": 3.0}), "a")(chain("MatMul(a, w)", noise(4, 4)))
    assert node(model, "y").inputs[1] is model.graph.initializers["w"]
    assert node(model, "a").inputs[1] is not model.graph.initializers["w"]


def test_every_group_of_a_convolution_keeps_its_small_channels():
    weight = noise(6, 2, 3, 3) * np.geomspace(1e-3, 1, 6, dtype=np.float32)[:, None, None, None]
    model = small_graph("float[1,4,4,4] x => float[1,6,2,2] y", "y = Conv<group=2>(x, w)", {"w": weight})
    feeds = {"x": noise(1, 4, 4, 4)}
    expected = outputs(model, feeds)["y"]
    got = outputs(Quantize(quantized("y", {"x": 4.0}), "y")(model), feeds)["y"]
    for channel in range(6):
        assert correlation(got[:, channel], expected[:, channel]) > 0.99


def test_a_transposed_convolution_in_groups_is_not_quantizable():
    model = small_graph(
        "float[1,4,2,2] x => float[1,4,2,2] y", "y = ConvTranspose<group=2>(x, w)", {"w": noise(4, 2, 1, 1)}
    )
    assert quantizable_nodes(model.graph) == ()


@pytest.mark.parametrize("body", ["y = Add(x, w)", "y = Softmax(x)", "a = Add(x, x) y = MatMul(a, x)"])
def test_a_node_that_cannot_be_in_eight_bits_is_refused_by_name(body):
    model = small_graph("float[4,4] x => float[4,4] y", body, {"w": noise(4, 4)} if "w" in body else {})
    with pytest.raises(InputError, match=r"quantizes y \(\w+\), expected a product, convolution"):
        Quantize(quantized("y", {"x": 3.0, "a": 3.0}), "y")(model)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_range_that_no_scale_serves_is_refused_by_name(kind):
    farthest = TYPES[kind].largest_range
    Quantize(quantized("y", {"x": farthest}, kind), "y")(product(noise(4, 4)))
    with pytest.raises(InputError, match="range of x is"):
        Quantize(quantized("y", {"x": farthest * 1.001}, kind), "y")(product(noise(4, 4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
def test_a_weight_that_is_not_finite_or_far_too_large_is_refused_by_name(bad):
    weight = noise(4, 4)
    weight[2, 1] = bad
    with pytest.raises(InputError, match="the weight w holds"):
        Quantize(quantized("y", {"x": 3.0}), "y")(product(weight))


def test_one_pass_serves_one_graph_after_another():
    apply, feeds = Quantize(quantized("y", {"x": 3.0}), "y"), {"x": noise(2, 4)}
    weights = [noise(4, 4, seed=seed) for seed in (1, 2)]
    results = [outputs(apply(product(weight)), feeds)["y"] for weight in weights]
    alone = [outputs(Quantize(quantized("y", {"x": 3.0}), "y")(product(w)), feeds)["y"] for w in weights]
    np.testing.assert_array_equal(results, alone)
    assert not np.array_equal(*results)


def test_a_weight_is_computed_once_and_only_when_it_is_written(monkeypatch, tmp_path):
    computed, rounded = [], eight_bit_weights.round_steps
    monkeypatch.setattr(
        eight_bit_weights,
        "round_steps",
        lambda steps, bits: computed.append(steps.shape) or rounded(steps, bits),
    )
    body = "a = MatMul(x, v) y = MatMul(a, w)"
    model = small_graph(
        "float[2,64] x => float[2,48] y", body, {"v": noise(64, 32, seed=1), "w": noise(32, 48)}
    )
    Quantize(quantized("ay", {"x": 3.0, "a": 9.0}), "ay")(model)
    assert computed == []
    ir.save(model, tmp_path / "g.onnx", external_data="g.data", size_threshold_bytes=1024)
    assert sorted(computed) == [(32, 48), (64, 32)]


def test_nothing_in_an_fp32_region_is_put_into_eight_bits():
    for name in MINIATURE:
        graph = miniature_graph(name).graph
        rules = default_fp32_nodes(graph)
        known = frozenset(each.name for each in graph)
        fp32 = close_regions(graph, match_rules(rules, known, where=name))
        assert not fp32 & set(choose_eight_bit_nodes(graph, fp32_rules=rules, excluded=()))


def test_the_pictures_first_projection_and_the_vectors_last_are_left_in_half_precision():
    graph = miniature_graph("clip_image").graph
    can, left = quantizable_nodes(graph), default_excluded("clip_image", graph)
    assert match_rules(left, frozenset(can), where="clip_image") == {can[0], can[-1]}
    by_name = {each.name: each for each in graph}
    assert by_name[can[0]].inputs[0].name in {value.name for value in graph.inputs}
    vectors = default_excluded("clip_text", miniature_graph("clip_text").graph)
    assert [rule.because for rule in vectors] == ["last projection: the vector itself"]


GRAPHS = ("vae_encoder", "clip_image")
"""Convolutions and products; test_precision.py converts whole bundles."""


@pytest.fixture(scope="module", params=[(name, kind) for name in GRAPHS for kind in ("int8", "fp8")])
def converted(request, tmp_path_factory):
    """A graph's file after all passes, and what it was made by."""
    name, kind = request.param
    graph = miniature_graph(name).graph
    fp32, left = default_fp32_nodes(graph), default_excluded(name, graph)
    nodes = choose_eight_bit_nodes(graph, fp32_rules=fp32, excluded=left)
    feeds = [open_bundle(BUNDLE, verify="size").golden()[name][0]]
    ranges = collect_ranges(BUNDLE / f"{name}.onnx", feeds, data_inputs(graph, nodes), method="minmax")
    path = tmp_path_factory.mktemp(kind) / f"{name}.onnx"
    eight = quantized(nodes, ranges, kind)
    convert_graph(
        BUNDLE / path.name, path, GraphRecipe(half="fp16", fp32=fp32, excluded=left, quantized=eight)
    )
    return path, eight


@pytest.mark.slow
def test_the_whole_chain_makes_a_small_file_that_runs_and_answers_alike(converted):
    path, _ = converted
    feeds, expected = open_bundle(BUNDLE, verify="size").golden()[path.stem]
    got = CheckSession(rounded_model(path), folder=path.parent).run(feeds)
    for output, record in expected.items():
        assert correlation(select_recorded(got[output], record), record) > 0.995
    size, before = (
        sum(each.stat().st_size for each in folder.glob(f"{path.stem}.onnx*"))
        for folder in (path.parent, BUNDLE)
    )
    assert size < 0.35 * before


def test_typing_the_graph_half_changes_no_scale_and_no_weight(converted):
    path, eight = converted
    single = Quantize(eight, eight.nodes)(miniature_graph(path.stem)).graph
    twins = {each.name: each for each in single}
    model = ir.load(path)
    assert model.opset_imports[""] >= 19
    pairs = [each for each in model.graph if each.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == sum(each.op_type in ("QuantizeLinear", "DequantizeLinear") for each in single) > 0
    for each in pairs:
        scale = each.inputs[1]
        assert scale.dtype == ir.DataType.FLOAT16
        before = twins[each.name].inputs[1].const_value.numpy()
        np.testing.assert_array_equal(scale.const_value.numpy().astype(np.float32), before)
    eights = [
        name
        for name, value in model.graph.initializers.items()
        if value.dtype == TYPES[eight.type].dtype and value.const_value.shape
    ]
    assert len(eights) > len(eight.nodes) / 2
    for each in eights:
        values = model.graph.initializers[each].const_value.numpy().astype(np.float32)
        np.testing.assert_array_equal(
            values, single.initializers[each].const_value.numpy().astype(np.float32)
        )
        assert np.abs(values).max(initial=0) <= TYPES[eight.type].largest
