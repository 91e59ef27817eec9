"""Trials of whole graphs, and with `bisection` the search for exactly the nodes that break one."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.accuracy.tolerances import GraphTolerance
from refdiff.calibration.bisect import SearchBudget, SmallestSet, find_smallest
from refdiff.calibration.output_tolerance import Outcome, OutputTolerance
from refdiff.calibration.ranges import collect_ranges, smoothing_exponents
from refdiff.contracts.recipe import GraphRecipe, Half, Quantized, Rule
from refdiff.contracts.session import Array
from refdiff.engines.intermediate_tensors import probe
from refdiff.errors import InputError
from refdiff.passes.keep_fp32 import default_fp32_nodes
from refdiff.passes.quantizable import choose_eight_bit_nodes, data_inputs, default_excluded
from tests.support.graph_files import (
    golden_feeds,
    is_inside,
    planted_miniature,
    saved,
    tolerance_of,
)
from tests.support.planted import overflow
from tests.support.small_graphs import BUNDLE, miniature_graph, noise, small_graph

FP16 = GraphRecipe(half="fp16")
CLOSE = GraphTolerance(error=0.005, correlation=0.9999)
EIGHT_BITS = GraphTolerance(error=0.1, correlation=0.995)
SPREAD = np.float32([1.0, -1.5, 0.5, 0.1])
WEIGHTS = {"up": np.float32([6e4]), "down": np.float32([1e-4])}
OVERFLOW = "p = Relu(x) q = Sub(x, p) a = Mul(q, up) b = Mul(a, down) r = Neg(b) y = Add(r, p)"


def vector(body: str, weights: Mapping[str, Array] | None = None) -> ir.Model:
    return small_graph("float[N] x => float[N] y", body, weights)


def trials_of(
    model: ir.Model,
    folder: Path,
    *feeds: Mapping[str, Array],
    recipe: GraphRecipe = FP16,
    tolerance: GraphTolerance = CLOSE,
) -> OutputTolerance:
    return OutputTolerance(saved(model, folder), recipe, feeds, tolerance)


def searched(trials: OutputTolerance, *, guessing: bool = True) -> SmallestSet:
    assert not trials.worst(()).inside
    assert trials.inside(trials.candidates)
    guess = trials.guess()[0] if guessing else ()
    return find_smallest(trials.candidates, SearchBudget(trials.inside, most=400), guess=guess)


FAULTS: dict[str, tuple[str, Half, Mapping[str, Array], set[str]]] = {
    "overflow": (OVERFLOW, "fp16", WEIGHTS, {"a", "b"}),
    "overflow moved": (
        "p = Neg(x) a = Mul(p, up) m = Reshape(a, s) t = Transpose(m) b = Mul(t, down) f = Reshape(b, n) "
        "y = Neg(f)",
        "fp16",
        {**WEIGHTS, "s": np.int64([2, 2]), "n": np.int64([-1])},
        {"a", "b"},
    ),
    "overflow in two modules": (
        "m__a = Mul(x, up) m__b = Mul(m__a, down) m__r = Neg(m__b) n__r = Exp(m__r) n__a = Mul(n__r, up) "
        "n__b = Mul(n__a, down) n__s = Neg(n__b) y = Add(n__s, x)",
        "fp16",
        WEIGHTS,
        {"m/a", "m/b", "n/a", "n/b"},
    ),
    "overflow of an output": ("a = Neg(x) y = Mul(a, up)", "fp16", WEIGHTS, {"y"}),
    "overflow of a weight": (
        "a = Neg(x) b = Mul(a, w) y = Mul(b, down)",
        "fp16",
        {"w": np.float32([1e5]), "down": np.float32([1e-4])},
        {"b", "y"},
    ),
    "underflow": (
        "p = Neg(x) a = Mul(p, down) b = Mul(a, down) c = Mul(b, up) y = Neg(c)",
        "fp16",
        WEIGHTS,
        {"b", "c"},
    ),
    "cancellation": (
        "p = Neg(x) a = Add(p, large) b = Sub(a, large) y = Neg(b)",
        "bf16",
        {"large": np.float32([256.0])},
        {"a", "b"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("guessing", [True, False], ids=["with a guess", "without"])
@pytest.mark.parametrize("fault", FAULTS)
def test_exactly_the_planted_nodes_are_found(tmp_path: Path, fault: str, guessing: bool) -> None:
    body, half, weights, planted = FAULTS[fault]
    tolerance = dataclasses.replace(CLOSE, error=0.02, correlation=0.999)
    recipe, feeds = GraphRecipe(half=half), {"x": SPREAD}
    trials = trials_of(vector(body, weights), tmp_path, feeds, recipe=recipe, tolerance=tolerance)
    found = searched(trials, guessing=guessing)
    assert set(found.nodes) == planted
    assert found.minimal
    assert is_inside(tmp_path / "graph.onnx", trials.recipe(found.nodes), feeds, tolerance)


@pytest.mark.slow
def test_a_guess_saves_trials(tmp_path: Path) -> None:
    body = " ".join(f"n{i} = Neg({'x' if not i else f'n{i - 1}'})" for i in range(40))
    model = vector(f"{body} a = Mul(n39, up) b = Mul(a, down) y = Neg(b)", WEIGHTS)
    trials = trials_of(model, tmp_path, {"x": SPREAD})
    assert trials.guess()[0] == ("n39", "a", "b")
    assert searched(trials).trials < searched(trials, guessing=False).trials


def test_the_first_tensor_that_goes_wrong_is_reported(tmp_path: Path) -> None:
    guess, first = trials_of(vector(OVERFLOW, WEIGHTS), tmp_path, {"x": SPREAD}).guess()
    assert first is not None
    assert (first.tensor, first.node, first.lost, first.begins) == ("a", "a", 1, True)
    assert {"a", "b"} <= set(guess)


def test_where_nothing_goes_wrong_nothing_is_guessed(tmp_path: Path) -> None:
    trials = trials_of(vector("y = Neg(x)"), tmp_path, {"x": SPREAD})
    assert trials.guess() == ((), None)
    assert trials.inside(())
    assert trials.worst(()).inside


def test_a_search_that_runs_out_of_trials_leaves_a_set_that_is_inside(tmp_path: Path) -> None:
    trials = trials_of(vector(OVERFLOW, WEIGHTS), tmp_path, {"x": SPREAD})
    for most in range(8):
        found = find_smallest(trials.candidates, SearchBudget(trials.inside, most=most))
        assert trials.inside(found.nodes)
        assert found.trials <= most


def test_candidates_are_what_computes_and_is_not_in_fp32_yet(tmp_path: Path) -> None:
    model = vector(
        "c = Constant <value = float[1] {2.0}> () a = Mul(x, c) s = Shape(a) b = Exp(a) d = Reshape(b, s) "
        "y = Neg(d)"
    )
    recipe = dataclasses.replace(FP16, fp32=(Rule(nodes=("b",), because="a test"),))
    assert trials_of(model, tmp_path, {"x": SPREAD}).candidates == ("a", "b", "d", "y")
    assert trials_of(model, tmp_path, {"x": SPREAD}, recipe=recipe).candidates == ("a", "d", "y")


def test_a_recipe_on_trial_is_the_recipe_and_one_rule_more(tmp_path: Path) -> None:
    before = dataclasses.replace(FP16, fp32=(Rule(nodes=("r",), because="a test"),))
    trials = trials_of(vector(OVERFLOW, WEIGHTS), tmp_path, {"x": SPREAD}, recipe=before)
    assert trials.recipe(()) is before
    after = trials.recipe({"b", "a"}, because="it overflows")
    assert after.fp32 == (*before.fp32, Rule(nodes=("a", "b"), because="it overflows", origin="bisect"))


def test_an_outcome_says_how_far_which_output_is(tmp_path: Path) -> None:
    model = small_graph(
        "float[N] x => float[N] y, float[N] z", "z = Neg(x) a = Mul(x, up) y = Mul(a, down)", WEIGHTS
    )
    trials = trials_of(model, tmp_path, {"x": SPREAD})
    broken, fixed = trials.worst(()), trials.worst(("a", "y"))
    assert (broken.output, broken.error, broken.correlation, broken.inside) == ("y", np.inf, 0.0, False)
    assert fixed.inside
    assert 0 < fixed.error < 1e-3
    assert broken.to_json() == {"output": "y", "error": None, "correlation": 0.0, "inside": False}
    assert Outcome("y", 0.5, 0.25, inside=False).to_json()["error"] == 0.5


def test_a_low_correlation_alone_is_outside(tmp_path: Path) -> None:
    model, strict = vector("y = Neg(x)"), GraphTolerance(error=1.0, correlation=1.0)
    x = noise(64)
    assert not trials_of(model, tmp_path, {"x": x}, tolerance=strict).inside(())
    assert trials_of(model, tmp_path, {"x": x}, tolerance=CLOSE).inside(())


class RecordingProbe:
    """A probe that keeps the feeds of each run, and counts the results that are read."""

    def __init__(self) -> None:
        self.feeds: list[Mapping[str, Array]] = []
        self.results = 0

    def __call__(
        self,
        model: ir.Model | Path,
        feeds: Sequence[Mapping[str, Array]],
        names: Sequence[str],
        *,
        folder: Path | None = None,
    ) -> Iterator[tuple[int, str, Array]]:
        self.feeds, self.results = list(feeds), 0
        for result in probe(model, feeds, names, folder=folder):
            self.results += 1
            yield result


def test_the_worst_feed_comes_first_and_its_failure_ends_a_trial(tmp_path: Path) -> None:
    runs = RecordingProbe()
    feeds = [{"x": SPREAD * np.float32(scale)} for scale in (0.01, 0.1, 10.0, 0.02)]
    path = saved(vector(OVERFLOW, WEIGHTS), tmp_path)
    trials = OutputTolerance(path, FP16, feeds, CLOSE, probe=runs)
    assert not trials.inside(())
    assert runs.results == 3
    assert not trials.worst(()).inside
    assert runs.results == 4
    assert not trials.inside(())
    assert runs.results == 1
    assert runs.feeds[0] is feeds[2]
    assert trials.inside(("a", "b"))  # each feed is still compared with its own answer
    assert runs.results == 4


def test_an_overflow_on_one_feed_of_many_is_found(tmp_path: Path) -> None:
    feeds = [{"x": SPREAD * np.float32(scale)} for scale in (0.01, 0.02, 10.0, 0.03)]
    assert set(searched(trials_of(vector(OVERFLOW, WEIGHTS), tmp_path, *feeds)).nodes) == {"a", "b"}


def test_no_feeds_are_refused_since_on_none_of_them_everything_is_inside(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never run in the recorded feeds"):
        trials_of(vector("y = Neg(x)"), tmp_path)


def test_a_recipe_of_another_graph_is_refused(tmp_path: Path) -> None:
    recipe = dataclasses.replace(FP16, fp32=(Rule(nodes=("z",), because="a test"),))
    with pytest.raises(InputError, match="no node has that name"):
        _ = trials_of(vector("y = Neg(x)"), tmp_path, {"x": SPREAD}, recipe=recipe).candidates


def test_what_is_broken_in_fp32_is_named(tmp_path: Path) -> None:
    trials = trials_of(vector("a = Neg(x) b = Sqrt(a) y = Neg(b)"), tmp_path, {"x": SPREAD})
    assert not trials.inside(trials.candidates)
    assert [each.node for each in trials.find_non_finite()] == ["b"]
    assert trials_of(vector(OVERFLOW, WEIGHTS), tmp_path, {"x": SPREAD}).find_non_finite() == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tensor"),
    [("clip_text", "blocks.0.block.mlp.c_proj/Add"), ("vae_encoder", "encoder.mid_block.resnets.1/Add")],
)
def test_an_overflow_planted_into_the_miniature_is_found_exactly(
    name: str, tensor: str, tmp_path: Path
) -> None:
    path = planted_miniature(name, overflow(tensor, half=False), tmp_path)
    feeds, tolerance = golden_feeds(name), tolerance_of(name, "fp16")
    recipe = GraphRecipe(half="fp16", fp32=default_fp32_nodes(ir.load(path).graph))
    trials = OutputTolerance(path, recipe, [feeds], tolerance)
    assert not trials.worst(()).inside
    guess, first = trials.guess()
    assert first is not None
    assert first.node == f"{tensor}/up"
    found = find_smallest(trials.candidates, SearchBudget(trials.inside, most=100), guess=guess)
    assert set(found.nodes) == {f"{tensor}/up", f"{tensor}/down"}
    assert is_inside(path, trials.recipe(found.nodes), feeds, tolerance)


def quantized(nodes: Collection[str], ranges: Mapping[str, float], **settings: object) -> GraphRecipe:
    eight = Quantized(type="int8", nodes=tuple(nodes), ranges=ranges, method="minmax", **settings)
    return GraphRecipe(half="fp16", quantized=eight)


LAYERS = {name: noise(8, 8, seed=seed) / np.float32(8**0.5) for seed, name in enumerate("uvw")}
STACK = "a = MatMul(x, u) s = Relu(a) b = MatMul(s, v) c = MatMul(b, w) y = Add(c, a)"


@pytest.mark.parametrize("factor", [0.02, 100.0], ids=["too small", "too large"])
@pytest.mark.parametrize(("tensor", "layer"), [("x", "a"), ("s", "b"), ("b", "c")])
def test_the_layer_with_a_planted_bad_range_is_the_one_left_out(
    tmp_path: Path, tensor: str, layer: str, factor: float
) -> None:
    path = saved(small_graph("float[4, 8] x => float[4, 8] y", STACK, LAYERS), tmp_path)
    feeds = {"x": noise(4, 8, seed=9)}
    ranges = collect_ranges(path, [feeds], ("x", "s", "b"), method="minmax")
    assert is_inside(path, quantized("abc", ranges), feeds, EIGHT_BITS)
    bad = quantized("abc", {**ranges, tensor: ranges[tensor] * factor})
    trials = OutputTolerance(path, bad, [feeds], EIGHT_BITS)
    assert trials.candidates == ("a", "b", "c")
    found = searched(trials)
    assert found.nodes == (layer,)
    after = trials.recipe(found.nodes)
    assert after.excluded == (Rule(nodes=(layer,), because="on trial", origin="bisect"),)
    assert is_inside(path, after, feeds, EIGHT_BITS)


def test_in_eight_bits_what_is_left_out_already_is_no_candidate(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        quantized(("a", "b", "c"), {"x": 3.0, "s": 3.0, "b": 3.0}),
        excluded=(Rule(nodes=("b",), because="a test"),),
        fp32=(Rule(nodes=("c", "y"), because="a test"),),
    )
    model = small_graph("float[4, 8] x => float[4, 8] y", STACK, LAYERS)
    assert trials_of(model, tmp_path, {"x": noise(4, 8)}, recipe=recipe).candidates == ("a",)


def test_readers_of_a_smoothed_tensor_are_left_out_together(tmp_path: Path) -> None:
    model = small_graph(
        "float[4, 8] x => float[4, 8] y",
        "n = LayerNormalization<axis=-1>(x, scale) a = MatMul(n, u) b = MatMul(n, v) d = Add(a, b) "
        "c = MatMul(d, w) y = Neg(c)",
        {"scale": np.geomspace(0.1, 10, 8, dtype=np.float32), **LAYERS},
    )
    path, feeds = saved(model, tmp_path), {"x": noise(4, 8, seed=9)}
    smoothing = smoothing_exponents(path, [feeds], ("a", "b"))
    ranges = collect_ranges(path, [feeds], ("n", "d"), method="minmax", smoothing=smoothing)
    bad = quantized("abc", {**ranges, "n": ranges["n"] * 0.02}, smoothing=smoothing)
    trials = OutputTolerance(path, bad, [feeds], EIGHT_BITS)
    assert trials.recipe(("b",)).excluded[0].nodes == ("a", "b")
    assert trials.recipe(("c",)).excluded[0].nodes == ("c",)
    found = searched(trials)
    assert len(found.nodes) == 1
    assert trials.recipe(found.nodes).excluded[0].nodes == ("a", "b")
    assert is_inside(path, trials.recipe(found.nodes), feeds, EIGHT_BITS)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.01, 300.0], ids=["too small", "too large"])
def test_a_bad_range_planted_into_the_miniature_is_found_exactly(tmp_path: Path, factor: float) -> None:
    name, layer = "clip_text", "blocks.0.block.mlp.c_proj/MatMul"
    path, graph, feeds = BUNDLE / f"{name}.onnx", miniature_graph(name).graph, golden_feeds(name)
    fp32, left, tolerance = (
        default_fp32_nodes(graph),
        default_excluded(name, graph),
        tolerance_of(name, "int8"),
    )
    nodes = choose_eight_bit_nodes(graph, fp32_rules=fp32, excluded=left)
    ranges = collect_ranges(path, [feeds], data_inputs(graph, nodes))
    healthy = dataclasses.replace(quantized(nodes, ranges), fp32=fp32, excluded=left)
    assert OutputTolerance(path, healthy, [feeds], tolerance).worst(()).inside
    (tensor,) = data_inputs(graph, {layer})
    bad = dataclasses.replace(
        quantized(nodes, {**ranges, tensor: ranges[tensor] * factor}), fp32=fp32, excluded=left
    )
    trials = OutputTolerance(path, bad, [feeds], tolerance)
    found = searched(trials)
    assert found.nodes == (layer,)
    assert is_inside(path, trials.recipe(found.nodes), feeds, tolerance)
