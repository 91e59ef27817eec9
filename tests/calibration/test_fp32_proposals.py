"""From dynamic ranges to fp32 rules: each planted fault is found, named and fixed, and nothing else."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.accuracy.tolerances import GraphTolerance
from refdiff.calibration.dynamic_range import DynamicRange, measure_dynamic_range
from refdiff.calibration.fp32_proposals import (
    MARGIN,
    NonFinite,
    OutOfRange,
    find_lost_values,
    find_non_finite,
    find_out_of_range,
    propose_rules,
)
from refdiff.calibration.simulation import simulate
from refdiff.contracts.recipe import GraphRecipe, Half
from refdiff.contracts.session import Array
from refdiff.engines.check_session import CheckSession
from refdiff.passes.convert import convert_graph
from refdiff.passes.keep_fp32 import default_fp32_nodes
from tests.support.graph_files import (
    golden_feeds,
    is_inside,
    planted_miniature,
    saved,
    tolerance_of,
)
from tests.support.planted import nan_in_weight, overflow
from tests.support.small_graphs import (
    BUNDLE,
    MINIATURE,
    fp32_nodes_of,
    miniature_graph,
    noise,
    small_graph,
)

CLOSE = GraphTolerance(error=0.005, correlation=0.9999)

Weights = Mapping[str, Array]


def measured(
    model: ir.Model, folder: Path, feeds: dict[str, Array], half: Half = "fp16"
) -> tuple[DynamicRange, ...]:
    return measure_dynamic_range(saved(model, folder), [feeds], half)


def found_in(
    body: str,
    weights: Weights,
    folder: Path,
    x: Array,
    *,
    half: Half = "fp16",
    margin: float = MARGIN,
    fp32: tuple[str, ...] = (),
    made: str = "float[N] y",
) -> list[OutOfRange]:
    """Of a graph that makes y from x, a vector."""
    model = small_graph(f"float[N] x => {made}", body, weights)
    tensors = measured(model, folder, {"x": x}, half)
    return list(find_out_of_range(model.graph, tensors, half, fp32=fp32, margin=margin))


def named(found: list[OutOfRange]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(each.kind, each.tensor, each.nodes) for each in found]


SPREAD = np.float32([1.0, -1.5, 0.5, 0.1])
TINY = noise(64, scale=3e-4)

OVERFLOW = (
    "a = Mul(x, up) b = Mul(a, down) y = Neg(b)",
    {"up": np.float32([6e4]), "down": np.float32([1e-4])},
)
UNDERFLOW = ("a = Mul(x, x) b = Mul(a, up) y = Neg(b)", {"up": np.float32([1e4])})


def test_a_planted_overflow_is_named_with_who_makes_and_who_reads_it(tmp_path: Path) -> None:
    (found,) = found_in(*OVERFLOW, tmp_path, SPREAD)
    assert (found.kind, found.tensor, found.node, found.nodes) == ("overflow", "a", "a", ("a", "b"))
    assert found.value == pytest.approx(90_000.0)
    assert not found.covered


def test_bfloat16_has_no_such_overflow(tmp_path: Path) -> None:
    assert found_in(*OVERFLOW, tmp_path, SPREAD, half="bf16") == []
    larger = {"up": np.float32([1e38]), "down": np.float32([1e-30])}
    assert named(found_in(OVERFLOW[0], larger, tmp_path, SPREAD, half="bf16")) == [
        ("overflow", "a", ("a", "b"))
    ]


def test_a_magnitude_needs_a_margin_to_the_end_of_the_type(tmp_path: Path) -> None:
    body, weights = "a = Mul(x, w) y = Neg(a)", {"w": np.float32([20_000.0])}
    assert {each.tensor for each in found_in(body, weights, tmp_path, SPREAD)} == {"a", "y"}
    assert found_in(body, weights, tmp_path, SPREAD, margin=2.0) == []


def test_a_weight_and_a_constant_need_no_margin(tmp_path: Path) -> None:
    body = "c = Constant <value = float[1] {60000.0}> () a = Div(x, c) b = Div(x, w) y = Add(a, b)"
    assert found_in(body, {"w": np.float32([60_000.0])}, tmp_path, SPREAD * 100) == []
    found = found_in(body.replace("60000", "70000"), {"w": np.float32([70_000.0])}, tmp_path, SPREAD * 100)
    assert named(found) == [("overflow", "c", ("a",)), ("overflow", "w", ("b",))]


def test_an_input_out_of_reach_is_named_after_its_first_reader(tmp_path: Path) -> None:
    (found,) = found_in("a = Mul(x, w) y = Neg(a)", {"w": np.float32([1e-5])}, tmp_path, SPREAD * 1e5)
    assert (found.tensor, found.node, found.nodes) == ("x", "a", ("a",))


def test_a_weight_that_is_stored_in_half_is_out_of_range_in_an_fp32_region_too(tmp_path: Path) -> None:
    model = small_graph("float[N] x => float[N] y", "a = Mul(x, w) y = Neg(a)", {"w": np.float32([1e6])})
    tensors = measured(model, tmp_path, {"x": SPREAD * np.float32(1e-6)})
    (inside,) = (
        each for each in find_out_of_range(model.graph, tensors, "fp16", fp32=("a",)) if each.tensor == "w"
    )
    assert inside.covered
    stored = find_out_of_range(model.graph, tensors, "fp16", fp32=("a",), half_weights=("a",))
    (outside,) = (each for each in stored if each.tensor == "w")
    assert not outside.covered
    (rule,) = propose_rules(model.graph, [outside], "fp16")
    assert rule.nodes == ("a",)


def test_nodes_that_move_an_overflow_are_findings_of_their_own(tmp_path: Path) -> None:
    weights = {
        "up": np.float32([1e5]),
        "down": np.float32([1e-5]),
        "s": np.int64([2, 2]),
        "f": np.int64([-1]),
    }
    body = "a = Mul(x, up) m = Reshape(a, s) b = Mul(m, down) y = Reshape(b, f)"
    found = found_in(body, weights, tmp_path, SPREAD)
    assert named(found) == [
        ("overflow", "up", ("a",)),
        ("overflow", "a", ("a", "m")),
        ("overflow", "m", ("m", "b")),
    ]


def test_a_planted_product_overflow_is_found_where_every_tensor_is_small(tmp_path: Path) -> None:
    # 150 x 150 twice, with opposite signs: some engines add in half; other pictures reach further.
    model = small_graph(
        "float[1, 2] x => float[1, 1] y", "y = MatMul(x, w)", {"w": np.float32([[150.0], [-150.0]])}
    )
    tensors = measured(model, tmp_path, {"x": np.float32([[150.0, 150.0]])})
    (found,) = find_out_of_range(model.graph, tensors, "fp16", fp32=())
    assert (found.kind, found.tensor, found.node, found.nodes) == ("product", "y", "y", ("y",))
    assert found.value == 22_500.0
    assert find_out_of_range(model.graph, tensors, "fp16", fp32=(), margin=2.0) == ()
    assert find_out_of_range(model.graph, tensors, "bf16", fp32=()) == ()
    (rule,) = propose_rules(model.graph, [found], "fp16")
    assert rule.because == "product: factors of y reach 2.25e+04 multiplied, fp16 ends at 6.55e+04"


def test_a_planted_underflow_is_named_with_who_makes_and_who_reads_it(tmp_path: Path) -> None:
    (found,) = found_in(*UNDERFLOW, tmp_path, TINY)
    assert (found.kind, found.tensor, found.node, found.nodes) == ("underflow", "a", "a", ("a", "b"))
    assert found.value > 0.1
    assert found_in(*UNDERFLOW, tmp_path, TINY, half="bf16") == []


def test_small_values_that_are_only_added_are_judged_by_the_sum(tmp_path: Path) -> None:
    weights = {
        "eps": np.float32([1e-7]),
        "s": np.int64([8, 8]),
        "f": np.int64([-1]),
        "one": np.float32([1.0]),
    }
    body = "a = Mul(x, x) m = Reshape(a, s) n = Reshape(m, f) b = Add(n, one) c = Add(b, eps) y = Sub(c, a)"
    assert found_in(body, weights, tmp_path, TINY) == []
    multiplied = body.replace("Add(n, one)", "Div(one, n)")
    assert {each.tensor for each in found_in(multiplied, weights, tmp_path, TINY)} >= {"a", "m", "n"}


def test_a_bias_is_only_added_and_a_factor_is_not(tmp_path: Path) -> None:
    def found(body: str) -> set[str]:
        model = small_graph(
            "float[2, 4] x => float[2, 4] y", body, {"v": noise(4, 4), "w": noise(4, 4, seed=1, scale=1e-8)}
        )
        tensors = measured(model, tmp_path, {"x": noise(2, 4)})
        return {each.tensor for each in find_out_of_range(model.graph, tensors, "fp16", fp32=())}

    assert found("b = ReduceMean <keepdims = 0> (w) y = Gemm(x, v, b)") == {"w"}
    assert found("b = Gemm(x, w) y = Add(b, x)") == {"w"}


@pytest.mark.parametrize("moved", ["y = Mul(x, x)", "a = Mul(x, x) y = Reshape(a, s)"])
def test_small_values_that_leave_the_graph_are_found(tmp_path: Path, moved: str) -> None:
    # A reader of an output may do anything with it.
    found = found_in(moved, {"s": np.int64([-1])}, tmp_path, TINY)
    assert {each.kind for each in found} == {"underflow"}
    assert "y" in {each.tensor for each in found}


def test_findings_that_rules_cover_are_reported_and_not_proposed(tmp_path: Path) -> None:
    model = small_graph("float[N] x => float[N] y", *OVERFLOW)
    tensors = measured(model, tmp_path, {"x": SPREAD})
    for fp32, covered in (((), False), (("a",), False), (("a", "b"), True)):
        found = find_out_of_range(model.graph, tensors, "fp16", fp32=fp32)
        assert [each.covered for each in found] == [covered]
        assert bool(propose_rules(model.graph, found, "fp16")) != covered


def test_findings_come_in_the_graphs_order(tmp_path: Path) -> None:
    body = "a = Mul(x, up) b = Mul(a, down) c = Mul(b, up) d = Mul(c, down) y = Neg(d)"
    found = found_in(body, {"up": np.float32([6e4]), "down": np.float32([1e-4])}, tmp_path, SPREAD)
    assert [each.node for each in found] == ["a", "c"]


def test_a_rule_for_each_kind_says_the_worst_and_counts_the_rest(tmp_path: Path) -> None:
    model = small_graph(
        "float[N] x => float[N] y",
        "p__a = Mul(x, up) p__b = Mul(p__a, up) c = Mul(p__b, down) d = Mul(c, down) e = Mul(d, d) "
        "y = Mul(e, up)",
        {"up": np.float32([4e4]), "down": np.float32([1e-6])},
    )
    tensors = measured(model, tmp_path, {"x": SPREAD})
    rules = propose_rules(
        model.graph, find_out_of_range(model.graph, tensors, "fp16", fp32=()), "fp16", origin="hand"
    )
    assert [rule.because.partition(":")[0] for rule in rules] == ["overflow", "underflow"]
    assert rules[0].nodes == ("p/*", "c")
    assert "p__b reaches 2.4e+09, fp16 ends at 6.55e+04; 1 more" in rules[0].because
    assert "loses" in rules[1].because
    assert {rule.origin for rule in rules} == {"hand"}


def test_nothing_found_is_no_rule() -> None:
    model = small_graph("float[N] x => float[N] y", "y = Neg(x)")
    assert propose_rules(model.graph, (), "fp16") == ()


FIXED: dict[str, tuple[str, str, Weights, Array]] = {
    "overflow": ("float[N] x => float[N] y", *OVERFLOW, SPREAD),
    "overflow moved": (
        "float[N] x => float[N] y",
        "a = Mul(x, up) m = Reshape(a, s) t = Transpose(m) b = Mul(t, down) y = Reshape(b, f)",
        {"up": np.float32([6e4]), "down": np.float32([1e-4]), "s": np.int64([2, 2]), "f": np.int64([-1])},
        SPREAD,
    ),
    "overflow of an input": (
        "float[N] x => float[N] y",
        "m = Identity(x) a = Mul(m, down) y = Neg(a)",
        {"down": np.float32([1e-4])},
        SPREAD * 1e5,
    ),
    "overflow of an output": (
        "float[N] x => float[N] y",
        "a = Neg(x) y = Mul(a, up)",
        {"up": np.float32([6e4])},
        SPREAD,
    ),
    "overflow of a weight": (
        "float[N] x => float[N] y",
        "a = Div(x, w) b = Mul(a, up) y = Neg(b)",
        {"w": np.float32([1e5]), "up": np.float32([6e4])},
        SPREAD,
    ),
    "overflow of a constant": (
        "float[N] x => float[N] y",
        "c = Constant <value = float[1] {1e5}> () a = Mul(x, c) b = Div(a, c) y = Neg(b)",
        {},
        SPREAD,
    ),
    "overflow in two places": (
        "float[N] x => float[N] y",
        "a = Mul(x, up) b = Mul(a, down) r = Relu(b) s = Neg(r) c = Mul(s, up) d = Mul(c, down) y = Neg(d)",
        {"up": np.float32([6e4]), "down": np.float32([1e-4])},
        SPREAD,
    ),
    "underflow": ("float[N] x => float[N] y", *UNDERFLOW, TINY),
    "underflow of a weight": (
        "float[N] x => float[N] y",
        "a = Mul(x, w) y = Neg(a)",
        {"w": noise(64, scale=1e-7)},
        noise(64, seed=1, scale=1e4),
    ),
    "underflow of an output": ("float[N] x => float[N] y", "y = Mul(x, x)", {}, TINY),
}


@pytest.mark.parametrize("fault", FIXED)
def test_a_recipe_with_the_proposed_rules_brings_the_graph_back(tmp_path: Path, fault: str) -> None:
    signature, body, weights, x = FIXED[fault]
    path, feeds = saved(small_graph(signature, body, weights), tmp_path), {"x": x}
    before = GraphRecipe(half="fp16")
    if "of a weight" not in fault or "underflow" in fault:  # a weight too large is refused, not lost
        assert not is_inside(path, before, feeds, CLOSE)
    graph = ir.load(path).graph
    found = find_out_of_range(graph, measure_dynamic_range(path, [feeds], "fp16"), "fp16", fp32=())
    after = dataclasses.replace(before, fp32=propose_rules(graph, found, "fp16"))
    assert is_inside(path, after, feeds, CLOSE)


def test_a_weight_whose_small_rows_alone_are_read_can_still_be_stored(tmp_path: Path) -> None:
    # In half precision all of a table is stored, whatever rows the feeds ask for.
    table = noise(4, 3)
    table[3] = 1e5
    model = small_graph(
        "int64[2] i => float[2, 3] y", "rows = Gather(table, i) a = Neg(rows) y = Mul(a, a)", {"table": table}
    )
    path, feeds = saved(model, tmp_path, "before"), {"i": np.int64([0, 2])}
    found = find_out_of_range(model.graph, measure_dynamic_range(path, [feeds], "fp16"), "fp16", fp32=())
    assert named(list(found)) == [("overflow", "table", ("rows", "a"))]
    recipe = GraphRecipe(half="fp16", fp32=propose_rules(model.graph, found, "fp16"))
    convert_graph(path, tmp_path / "after.onnx", recipe)
    got = CheckSession(tmp_path / "after.onnx").run({"i": np.int64([3, 0])})["y"]
    np.testing.assert_allclose(got[0], 1e10)
    np.testing.assert_allclose(got[1], table[0] ** 2, rtol=2e-3)


def sick_nodes(model: ir.Model, folder: Path, feeds: dict[str, Array]) -> list[tuple[str, str]]:
    return [(each.node, each.tensor) for each in find_non_finite(model.graph, measured(model, folder, feeds))]


def test_a_planted_nan_is_blamed_on_the_node_that_makes_it_and_on_none_behind_it(tmp_path: Path) -> None:
    model = small_graph("float[4] x => float[4] y", "a = Neg(x) b = Sqrt(a) c = Mul(b, x) y = Add(c, b)")
    (found,) = find_non_finite(model.graph, measured(model, tmp_path, {"x": SPREAD}))
    assert str(found) == "b (Sqrt) makes 3 NaN and 0 Inf of 4 values in fp32"
    assert found == NonFinite(node="b", operator="Sqrt", tensor="b", nan=3, inf=0, size=4)


def test_a_planted_nan_in_a_weight_is_blamed_on_the_weight_and_its_first_reader(tmp_path: Path) -> None:
    weight = np.float32([1.0, np.nan, np.inf, 2.0])
    model = small_graph("float[4] x => float[4] y", "a = Mul(x, w) b = Relu(a) y = Add(b, w)", {"w": weight})
    (found,) = find_non_finite(model.graph, measured(model, tmp_path, {"x": SPREAD}))
    assert str(found) == "a: its weight w holds 1 NaN and 1 Inf of 4 values in fp32"
    assert (found.node, found.tensor) == ("a", "w")


def test_a_feed_that_holds_nan_is_blamed_not_the_node_that_reads_it(tmp_path: Path) -> None:
    model = small_graph("float[4] x => float[4] y", "a = Neg(x) y = Relu(a)")
    (found,) = find_non_finite(model.graph, measured(model, tmp_path, {"x": SPREAD * np.float32(np.nan)}))
    assert str(found) == "a: its input x holds 4 NaN and 0 Inf of 4 values in fp32"


def test_two_nodes_that_make_nan_are_both_named(tmp_path: Path) -> None:
    model = small_graph(
        "float[4] x => float[4] y",
        "a = Sqrt(x) b = Neg(x) c = Log(b) d = Exp(a) y = Add(c, d)",
    )
    assert sick_nodes(model, tmp_path, {"x": SPREAD}) == [("a", "a"), ("c", "c")]


def test_an_infinity_that_becomes_nan_is_blamed_once(tmp_path: Path) -> None:
    model = small_graph("float[4] x => float[4] y", "a = Exp(x) b = Sub(a, a) y = Neg(b)")
    (found,) = find_non_finite(model.graph, measured(model, tmp_path, {"x": SPREAD * 100}))
    assert str(found) == "a (Exp) makes 0 NaN and 1 Inf of 4 values in fp32"


def test_where_all_is_finite_nothing_is_broken(tmp_path: Path) -> None:
    model = small_graph("float[N] x => float[N] y", *OVERFLOW)
    assert find_non_finite(model.graph, measured(model, tmp_path, {"x": SPREAD})) == ()


def test_what_a_trial_loses_is_a_finding_where_it_begins(tmp_path: Path) -> None:
    model = small_graph("float[N] x => float[N] y", *OVERFLOW)
    path = saved(model, tmp_path)
    tensors = simulate(path, GraphRecipe(half="fp16"), [{"x": SPREAD}])
    (found,) = find_lost_values(model.graph, tensors, fp32=("a",))
    assert (found.kind, found.tensor, found.node, found.nodes) == ("trial", "a", "a", ("a", "b"))
    assert (found.value, found.covered) == (1.0, False)
    (rule,) = propose_rules(model.graph, [found], "fp16")
    assert rule.because == "trial: a made 1 NaN or Inf in a trial in fp16"


HEALTHY: list[tuple[str, Half]] = [
    *((name, "fp16") for name in MINIATURE),
    *((name, "bf16") for name in ("clip_text", "sd_text", "vae_encoder")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "half"), HEALTHY)
def test_nothing_is_found_in_the_healthy_miniature(name: str, half: Half) -> None:
    model = miniature_graph(name)
    tensors = measure_dynamic_range(BUNDLE / f"{name}.onnx", [golden_feeds(name)], half)
    assert find_non_finite(model.graph, tensors) == ()
    assert find_out_of_range(model.graph, tensors, half, fp32=fp32_nodes_of(model, half)) == ()


PLACES = [
    ("clip_text", "blocks.0.block.mlp.c_proj/Add"),  # into the residual stream
    ("sd_text", "layers.1.self_attn.k_proj/Add"),  # into an attention
    ("vae_encoder", "encoder.conv_out/Conv"),  # after the last norm
    ("unet", "unet.up_blocks.1.resnets.1/Add_1"),  # into a norm in an fp32 region
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tensor"), PLACES)
def test_an_overflow_planted_into_the_miniature_is_found_named_and_fixed(
    name: str, tensor: str, tmp_path: Path
) -> None:
    path = planted_miniature(name, overflow(tensor, half=False), tmp_path)
    graph, feeds, tolerance = ir.load(path).graph, golden_feeds(name), tolerance_of(name, "fp16")
    before = GraphRecipe(half="fp16", fp32=default_fp32_nodes(graph))
    assert not is_inside(path, before, feeds, tolerance)
    tensors = measure_dynamic_range(path, [feeds], "fp16")
    found = find_out_of_range(graph, tensors, "fp16", fp32=fp32_nodes_of(ir.load(path)))
    up, down = f"{tensor}/up", f"{tensor}/down"
    assert [(each.kind, each.tensor) for each in found] == [("overflow", up)]
    assert set(found[0].nodes) == {up, down}
    after = dataclasses.replace(before, fp32=(*before.fp32, *propose_rules(graph, found, "fp16")))
    assert is_inside(path, after, feeds, tolerance)


def test_a_nan_planted_into_a_weight_of_the_miniature_is_blamed_on_it(tmp_path: Path) -> None:
    blamed = "blocks.1.block.mlp.c_fc/MatMul"
    path = planted_miniature("clip_text", nan_in_weight(blamed), tmp_path)
    tensors = measure_dynamic_range(path, [golden_feeds("clip_text")], "fp16")
    (found,) = find_non_finite(ir.load(path).graph, tensors)
    assert (found.node, found.operator, found.nan) == (blamed, "weight", 1)


def test_documents_are_json(tmp_path: Path) -> None:
    (found,) = found_in(*OVERFLOW, tmp_path, SPREAD)
    assert json.loads(json.dumps(found.to_json())) == {
        "kind": "overflow",
        "tensor": "a",
        "node": "a",
        "value": pytest.approx(90_000.0),
        "nodes": ["a", "b"],
        "covered": False,
    }
    sick = NonFinite(node="b", operator="Sqrt", tensor="b", nan=3, inf=0, size=4)
    assert json.loads(json.dumps(sick.to_json())) == dataclasses.asdict(sick)
