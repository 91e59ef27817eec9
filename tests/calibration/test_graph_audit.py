"""Ranges that do not fit what their tensors reach: planted ones are named, healthy ones are not."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.graph_audit import CUT_OFF, UNUSED, BadRange, find_bad_ranges
from refdiff.calibration.ranges import collect_ranges, smoothing_exponents
from refdiff.calibration.recipes import METHODS
from refdiff.contracts.recipe import GraphRecipe, Quantized, Rule
from refdiff.contracts.session import Array
from refdiff.errors import InputError
from refdiff.passes.keep_fp32 import default_fp32_nodes
from refdiff.passes.quantizable import choose_eight_bit_nodes, data_inputs, default_excluded
from tests.support.graph_files import golden_feeds, is_inside, saved, tolerance_of
from tests.support.small_graphs import BUNDLE, miniature_graph, noise, small_graph

LAYERS = {name: noise(8, 8, seed=seed) / np.float32(8**0.5) for seed, name in enumerate("uvw")}
STACK = "block__a = MatMul(x, u) s = Relu(block__a) b = MatMul(s, v) c = MatMul(s, w) y = Add(b, c)"
NODES = ("block/a", "b", "c")
FEEDS = {"x": noise(4, 8, seed=9)}


def stack(folder: Path) -> Path:
    return saved(small_graph("float[4, 8] x => float[4, 8] y", STACK, LAYERS), folder)


def quantized(
    ranges: Mapping[str, float],
    nodes: Collection[str] = NODES,
    smoothing: Mapping[str, tuple[int, ...]] | None = None,
) -> Quantized:
    return Quantized(
        type="int8", nodes=tuple(nodes), ranges=ranges, method="minmax", smoothing=smoothing or {}
    )


def reach_of(path: Path, *feeds: Mapping[str, Array]) -> dict[str, float]:
    return collect_ranges(path, feeds or (FEEDS,), ("x", "s"), method="minmax")


def rule(*nodes: str) -> Rule:
    return Rule(nodes=nodes, because="a test")


def test_ranges_that_fit_are_no_finding(tmp_path: Path) -> None:
    path = stack(tmp_path)
    assert find_bad_ranges(path, quantized(reach_of(path)), [FEEDS]) == ()


def test_a_planted_range_that_is_too_small_is_named_after_who_makes_its_tensor(tmp_path: Path) -> None:
    path = stack(tmp_path)
    ranges = reach_of(path)
    (found,) = find_bad_ranges(path, quantized({**ranges, "s": 0.05}), [FEEDS])
    assert found == BadRange(tensor="s", node="s", nodes=("b", "c"), range=0.05, reached=ranges["s"])
    assert str(found) == f"s: s is cut off: its range is 0.05, it reaches {ranges['s']:.4g}"


def test_a_planted_range_that_is_too_large_is_named_after_who_reads_the_input(tmp_path: Path) -> None:
    path = stack(tmp_path)
    ranges = reach_of(path)
    (found,) = find_bad_ranges(path, quantized({**ranges, "x": 1000.0}), [FEEDS])
    assert (found.tensor, found.node, found.nodes) == ("x", "block/a", ("block/a",))
    assert str(found) == f"block/a: x has few levels: its range is 1000, it reaches {ranges['x']:.4g}"


def test_both_bounds_belong_to_what_fits(tmp_path: Path) -> None:
    path, feeds = stack(tmp_path), {"x": np.full((4, 8), 2.0, np.float32)}
    s = reach_of(path, feeds)["s"]
    for range_, fits in (
        (2.0 / CUT_OFF, True),
        (1.99 / CUT_OFF, False),
        (2.0 * UNUSED, True),
        (2.01 * UNUSED, False),
    ):
        found = find_bad_ranges(path, quantized({"x": range_, "s": s}), [feeds])
        assert [each.tensor for each in found] == ([] if fits else ["x"])


def test_a_tensor_that_is_zero_on_these_feeds_says_nothing_about_its_range(tmp_path: Path) -> None:
    path = stack(tmp_path)
    assert find_bad_ranges(path, quantized({"x": 3.0, "s": 3.0}), [{"x": np.zeros((4, 8), np.float32)}]) == ()


def test_a_range_of_zero_cuts_everything_off(tmp_path: Path) -> None:
    path = stack(tmp_path)
    (found,) = find_bad_ranges(path, quantized({**reach_of(path), "s": 0.0}), [FEEDS])
    assert "s is cut off: its range is 0," in str(found)


def test_the_farthest_feed_counts(tmp_path: Path) -> None:
    path = stack(tmp_path)
    far = {"x": FEEDS["x"] * np.float32(20.0)}
    ranges = quantized(reach_of(path))
    assert {each.tensor for each in find_bad_ranges(path, ranges, [FEEDS, far])} == {"x", "s"}
    wide = quantized(reach_of(path, far))
    assert find_bad_ranges(path, wide, [FEEDS, far]) == ()
    assert {each.tensor for each in find_bad_ranges(path, wide, [FEEDS])} == {"x", "s"}


def test_findings_come_in_the_graphs_order(tmp_path: Path) -> None:
    found = find_bad_ranges(stack(tmp_path), quantized({"s": 1e-3, "x": 1e-3}), [FEEDS])
    assert [each.tensor for each in found] == ["x", "s"]


def test_ranges_of_nodes_that_are_not_quantized_are_not_checked(tmp_path: Path) -> None:
    path = stack(tmp_path)
    bad = {**reach_of(path), "s": 1e-3}
    assert find_bad_ranges(path, quantized(bad, ["block/a"]), [FEEDS]) == ()
    assert find_bad_ranges(path, quantized(bad), [FEEDS], excluded=(rule("b", "c"),)) == ()
    (found,) = find_bad_ranges(path, quantized(bad), [FEEDS], excluded=(rule("b"),))
    assert found.nodes == ("c",)


def test_patterns_name_nodes(tmp_path: Path) -> None:
    path = stack(tmp_path)
    bad = {"x": 1e-3, "s": 1e-3}
    assert [each.tensor for each in find_bad_ranges(path, quantized(bad, ["block/*"]), [FEEDS])] == ["x"]


def test_the_range_of_a_smoothed_tensor_is_that_of_the_divided_one(tmp_path: Path) -> None:
    model = small_graph(
        "float[4, 8] x => float[4, 8] y",
        "n = LayerNormalization<axis=-1>(x, scale) a = MatMul(n, u) y = Neg(a)",
        {"scale": np.float32([100, 100, 100, 100, 1, 1, 1, 1]), "u": LAYERS["u"] / np.float32(1000)},
    )
    path = saved(model, tmp_path)
    smoothing = {"n": (9,) * 8}
    assert set(smoothing_exponents(path, [FEEDS], ("a",))) == {"n"}  # it can be smoothed
    divided = collect_ranges(path, [FEEDS], ("n",), method="minmax", smoothing=smoothing)
    assert find_bad_ranges(path, quantized(divided, ["a"], smoothing), [FEEDS]) == ()
    (found,) = find_bad_ranges(path, quantized(divided, ["a"]), [FEEDS])
    assert found.tensor == "n"
    assert found.reached == pytest.approx(512 * divided["n"], rel=1e-5)


def test_an_embedding_has_no_range(tmp_path: Path) -> None:
    model = small_graph(
        "int64[4] i => float[4, 8] y",
        "e = Gather(table, i) y = MatMul(e, u)",
        {"table": noise(5, 8), **LAYERS},
    )
    path, feeds = saved(model, tmp_path), [{"i": np.int64([0, 1, 2, 3])}]
    (found,) = find_bad_ranges(path, quantized({"e": 1e-3}, ["e", "y"]), feeds)
    assert (found.tensor, found.node) == ("e", "e")


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    path = stack(tmp_path)
    ranges = reach_of(path)
    with pytest.raises(InputError, match="never run in the recorded feeds"):
        find_bad_ranges(path, quantized(ranges), [])
    with pytest.raises(InputError, match="no node has that name"):
        find_bad_ranges(path, quantized(ranges, ["z"]), [FEEDS])
    with pytest.raises(InputError, match="no node has that name"):
        find_bad_ranges(path, quantized(ranges), [FEEDS], excluded=(rule("z"),))
    with pytest.raises(InputError, match="x holds NaN or infinity in fp32"):
        find_bad_ranges(path, quantized(ranges), [{"x": FEEDS["x"] * np.float32(np.nan)}])


def test_a_document_is_json(tmp_path: Path) -> None:
    (found,) = find_bad_ranges(stack(tmp_path), quantized({"s": 1e-3}), [FEEDS])
    assert json.loads(json.dumps(found.to_json())) == {
        "tensor": "s",
        "node": "s",
        "nodes": ["b", "c"],
        "range": 1e-3,
        "largest_magnitude": found.reached,
    }


def eight_bits(name: str, method: str = "percentile") -> GraphRecipe:
    """What the toolkit makes of a graph of the miniature, on its golden feeds."""
    graph = miniature_graph(name).graph
    fp32, left = default_fp32_nodes(graph), default_excluded(name, graph)
    nodes = choose_eight_bit_nodes(graph, fp32_rules=fp32, excluded=left)
    tensors = data_inputs(graph, nodes)
    ranges = collect_ranges(BUNDLE / f"{name}.onnx", [golden_feeds(name)], tensors, method=method)
    return GraphRecipe(half="fp16", fp32=fp32, excluded=left, quantized=quantized(ranges, nodes))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["clip_text", "sd_text", "clip_image", "vae_encoder"])
def test_the_ranges_of_the_miniature_fit_by_every_method(name: str, method: str) -> None:
    recipe = eight_bits(name, method)
    assert recipe.quantized is not None
    path = BUNDLE / f"{name}.onnx"
    assert find_bad_ranges(path, recipe.quantized, [golden_feeds(name)], excluded=recipe.excluded) == ()


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.01, 300.0], ids=["too small", "too large"])
def test_a_range_planted_into_the_miniature_is_named_and_leaving_its_layer_out_fixes_it(
    factor: float,
) -> None:
    name, layer = "clip_text", "blocks.0.block.mlp.c_proj/MatMul"
    path, feeds, recipe = BUNDLE / f"{name}.onnx", golden_feeds(name), eight_bits("clip_text")
    assert recipe.quantized is not None
    (tensor,) = data_inputs(miniature_graph(name).graph, {layer})
    ranges = {**recipe.quantized.ranges, tensor: recipe.quantized.ranges[tensor] * factor}
    bad = dataclasses.replace(recipe, quantized=dataclasses.replace(recipe.quantized, ranges=ranges))
    assert bad.quantized is not None
    (found,) = find_bad_ranges(path, bad.quantized, [feeds], excluded=bad.excluded)
    assert (found.tensor, found.node, found.nodes) == (tensor, "blocks.0.block.mlp.gelu/Mul_1", (layer,))
    tolerance = tolerance_of(name, "int8")
    assert not is_inside(path, bad, feeds, tolerance)
    assert is_inside(
        path, dataclasses.replace(bad, excluded=(*bad.excluded, rule(*found.nodes))), feeds, tolerance
    )
