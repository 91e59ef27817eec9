"""A converted graph and its fp32 original: how far each tensor is off, and where values are lost."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.ranges import collect_ranges, smoothing_exponents
from refdiff.calibration.simulation import Deviation, simulate
from refdiff.contracts.recipe import GraphRecipe, Quantized, Rule
from refdiff.contracts.session import Array
from refdiff.engines.intermediate_tensors import probe
from refdiff.errors import InputError
from refdiff.passes.keep_fp32 import default_fp32_nodes
from tests.support.graph_files import golden_feeds, planted_miniature, saved
from tests.support.planted import overflow
from tests.support.small_graphs import BUNDLE, miniature_graph, noise, small_graph

FP16 = GraphRecipe(half="fp16")
SPREAD = np.float32([1.0, -1.5, 0.5, 0.1])
OVERFLOW = (
    "a = Mul(x, up) b = Mul(a, down) y = Neg(b)",
    {"up": np.float32([6e4]), "down": np.float32([1e-4])},
)


def keeping_fp32(*nodes: str) -> GraphRecipe:
    return GraphRecipe(half="fp16", fp32=(Rule(nodes=nodes, because="a test"),))


def compared(
    model: ir.Model, folder: Path, *feeds: Mapping[str, Array], recipe: GraphRecipe = FP16
) -> dict[str, Deviation]:
    return {each.tensor: each for each in simulate(saved(model, folder), recipe, feeds)}


def vector(body: str, weights: Mapping[str, Array] | None = None) -> ir.Model:
    return small_graph("float[N] x => float[N] y", body, weights)


def test_every_float_result_is_compared_once_in_the_graphs_order(tmp_path: Path) -> None:
    model = small_graph(
        "float[2, 3] x, int64[1] i => float[1, 3] y",
        "a = Mul(x, w) norm__b = Neg(a) s = Shape(a) y = Gather(norm__b, i)",
        {"w": noise(3)},
    )
    feeds = {"x": noise(2, 3), "i": np.int64([1])}
    found = simulate(saved(model, tmp_path), FP16, [feeds, feeds])
    assert [(each.tensor, each.node, each.operator) for each in found] == [
        ("a", "a", "Mul"),
        ("norm__b", "norm/b", "Neg"),
        ("y", "y", "Gather"),
    ]
    assert [each.size for each in found] == [12, 12, 6]


@settings(max_examples=15, deadline=None)
@given(hnp.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32)))
def test_the_error_is_that_of_the_rounding(tmp_path_factory: pytest.TempPathFactory, x: Array) -> None:
    found = compared(
        vector("a = Mul(x, w) y = Neg(a)", {"w": np.float32([0.3])}), tmp_path_factory.mktemp("g"), {"x": x}
    )
    exact = x * np.float32(0.3)
    got = (x.astype(np.float16) * np.float16(0.3)).astype(np.float32)
    largest = float(np.abs(exact).max())
    for name in "ay":
        assert found[name].error == pytest.approx(
            float(np.abs(got - exact).max()) / (largest or 1.0), rel=1e-3
        )
        assert found[name].largest == largest
        assert (found[name].lost, found[name].begins) == (0, False)


def test_the_worst_feed_counts(tmp_path: Path) -> None:
    model = vector("y = Neg(x)")
    exact, off = np.float32([1.0, 2.0]), np.float32([1.0, 1.0 + 2.0**-11])
    for feeds in ([exact, off], [off, exact]):
        found = compared(model, tmp_path, *({"x": x} for x in feeds))["y"]
        assert found.error == pytest.approx(2.0**-11, rel=1e-3)
        assert found.largest == 2.0


def test_a_planted_overflow_begins_at_its_node_and_goes_on_behind_it(tmp_path: Path) -> None:
    found = compared(vector(*OVERFLOW), tmp_path, {"x": SPREAD}, {"x": SPREAD * 10})
    assert {name: each.lost for name, each in found.items()} == {"a": 4, "b": 4, "y": 4}
    assert {name: each.begins for name, each in found.items()} == {"a": True, "b": False, "y": False}
    assert found["a"].largest == pytest.approx(900_000.0)
    assert all(each.off(1.0) for each in found.values())


def test_an_fp32_region_loses_nothing(tmp_path: Path) -> None:
    found = compared(vector(*OVERFLOW), tmp_path, {"x": SPREAD}, recipe=keeping_fp32("a", "b"))
    assert {each.lost for each in found.values()} == {0}
    assert found["y"].error < 1e-3


def test_half_an_fp32_region_loses_what_is_cast_behind_it(tmp_path: Path) -> None:
    found = compared(vector(*OVERFLOW), tmp_path, {"x": SPREAD}, recipe=keeping_fp32("a"))
    assert (found["a"].lost, found["a"].begins) == (0, False)
    assert (found["b"].lost, found["b"].begins) == (1, True)


def test_two_overflows_begin_in_two_places(tmp_path: Path) -> None:
    model = vector(
        "a = Mul(x, up) b = Relu(x) c = Mul(b, up) d = Add(a, c) y = Mul(d, down)",
        {"up": np.float32([6e4]), "down": np.float32([1e-4])},
    )
    found = compared(model, tmp_path, {"x": SPREAD * 2})
    assert [name for name, each in found.items() if each.begins] == ["a", "c"]


def test_a_weight_too_large_begins_where_it_is_read(tmp_path: Path) -> None:
    found = compared(
        vector("a = Neg(x) b = Mul(a, w) y = Neg(b)", {"w": np.float32([1e5])}), tmp_path, {"x": SPREAD}
    )
    assert [name for name, each in found.items() if each.begins] == ["b"]


def test_a_planted_underflow_is_an_error_as_large_as_the_tensor(tmp_path: Path) -> None:
    model = vector("a = Mul(x, x) b = Mul(a, up) y = Neg(b)", {"up": np.float32([6e4])})
    found = compared(model, tmp_path, {"x": np.float32([1e-4, -1e-4])})
    assert {name: each.error for name, each in found.items()} == {"a": 1.0, "b": 1.0, "y": 1.0}
    assert {each.lost for each in found.values()} == {0}
    assert found["a"].off(0.5)
    assert not found["a"].off(1.0)


def test_what_is_no_number_in_fp32_is_not_lost(tmp_path: Path) -> None:
    found = compared(vector("a = Sqrt(x) y = Neg(a)"), tmp_path, {"x": SPREAD})
    assert {name: (each.lost, each.begins) for name, each in found.items()} == {
        "a": (0, False),
        "y": (0, False),
    }
    assert found["a"].largest == 1.0
    assert found["a"].error < 1e-3


def test_a_tensor_of_zeros_has_its_error_in_absolute_terms(tmp_path: Path) -> None:
    found = compared(vector("a = Sub(x, x) y = Neg(a)"), tmp_path, {"x": SPREAD})
    assert (found["a"].error, found["a"].largest) == (0.0, 0.0)


class Shuffled:
    """A probe that hands everything out in another order each time."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(
        self,
        model: ir.Model | Path,
        feeds: Sequence[Mapping[str, Array]],
        names: Sequence[str],
        *,
        folder: Path | None = None,
    ) -> Iterator[tuple[int, str, Array]]:
        found = list(probe(model, feeds, names, folder=folder))
        self._rng.shuffle(found)
        yield from found


@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_which_tensors_come_does_not_matter(tmp_path: Path, seed: int) -> None:
    path = saved(vector(*OVERFLOW), tmp_path)
    feeds = [{"x": SPREAD * scale} for scale in (0.1, 1.0, 3.0)]
    expected = simulate(path, FP16, feeds)
    assert simulate(path, FP16, feeds, probe=Shuffled(seed)) == expected


def eight_bits(
    ranges: Mapping[str, float], smoothing: Mapping[str, tuple[int, ...]] | None = None
) -> GraphRecipe:
    nodes = tuple("ab") if smoothing else tuple("abc")
    return dataclasses.replace(
        FP16,
        quantized=Quantized(
            type="int8", nodes=nodes, ranges=ranges, method="minmax", smoothing=smoothing or {}
        ),
    )


LAYERS = {name: noise(8, 8, seed=seed) / np.float32(8**0.5) for seed, name in enumerate("uvw")}


@pytest.mark.parametrize("factor", [0.02, 100.0], ids=["too small", "too large"])
def test_a_planted_bad_range_shows_first_in_what_its_layer_makes(tmp_path: Path, factor: float) -> None:
    model = small_graph(
        "float[4, 8] x => float[4, 8] y",
        "a = MatMul(x, u) b = MatMul(a, v) c = MatMul(b, w) y = Neg(c)",
        LAYERS,
    )
    path, feeds = saved(model, tmp_path), [{"x": noise(4, 8, seed=9)}]
    ranges = collect_ranges(path, feeds, ("x", "a", "b"), method="minmax")
    healthy = simulate(path, eight_bits(ranges), feeds)
    assert not any(each.off(0.05) for each in healthy)
    bad = simulate(path, eight_bits({**ranges, "a": ranges["a"] * factor}), feeds)
    assert [each.node for each in bad if each.off(0.3)] == ["b", "c", "y"]


def smoothed(folder: Path) -> tuple[Path, list[dict[str, Array]], GraphRecipe]:
    """A norm of a tensor that overflows half precision; both products that read the norm are quantized."""
    model = small_graph(
        "float[4, 8] x => float[4, 8] y",
        "e = Mul(x, up) n = LayerNormalization<axis=-1>(e, scale) a = MatMul(n, u) b = MatMul(n, v) "
        "y = Add(a, b)",
        {"up": np.float32([6e4]), "scale": np.geomspace(0.1, 10, 8, dtype=np.float32), **LAYERS},
    )
    path, feeds = saved(model, folder), [{"x": noise(4, 8) * 3}]
    smoothing = smoothing_exponents(path, feeds, ("a", "b"))
    ranges = collect_ranges(path, feeds, ("n",), smoothing=smoothing)
    return path, feeds, eight_bits(ranges, smoothing)


def test_a_smoothed_tensor_is_left_out_since_it_is_meant_to_differ(tmp_path: Path) -> None:
    path, feeds, recipe = smoothed(tmp_path)
    kept = dataclasses.replace(recipe, fp32=(Rule(nodes=("e", "n"), because="a test"),))
    found = simulate(path, kept, feeds)
    assert [each.tensor for each in found] == ["e", "a", "b", "y"]
    assert not any(each.off(0.1) for each in found)


def test_what_is_lost_before_a_smoothed_tensor_does_not_begin_behind_it(tmp_path: Path) -> None:
    path, feeds, recipe = smoothed(tmp_path)
    left = dataclasses.replace(recipe, excluded=(Rule(nodes=("a", "b"), because="a test"),))
    found = simulate(path, left, feeds)
    assert [each.tensor for each in found if each.lost] == ["e", "a", "b", "y"]
    assert [each.tensor for each in found if each.begins] == ["e"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip_text", "sd_text", "vae_encoder"])
def test_the_healthy_miniature_loses_nothing(name: str) -> None:
    recipe = GraphRecipe(half="fp16", fp32=default_fp32_nodes(miniature_graph(name).graph))
    found = simulate(BUNDLE / f"{name}.onnx", recipe, [golden_feeds(name)])
    assert not any(each.off(0.01) for each in found)


@pytest.mark.slow
def test_an_overflow_planted_into_the_miniature_begins_at_its_node(tmp_path: Path) -> None:
    tensor = "blocks.0.block.mlp.c_proj/Add"
    path = planted_miniature("clip_text", overflow(tensor, half=False), tmp_path)
    recipe = GraphRecipe(half="fp16", fp32=default_fp32_nodes(ir.load(path).graph))
    found = simulate(path, recipe, [golden_feeds("clip_text")])
    assert [each.node for each in found if each.begins] == [f"{tensor}/up"]
    assert next(each.node for each in found if each.off(0.01)) == f"{tensor}/up"


def test_a_recipe_of_another_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no node has that name"):
        compared(vector("y = Neg(x)"), tmp_path, {"x": SPREAD}, recipe=keeping_fp32("z"))


def test_a_document_is_json(tmp_path: Path) -> None:
    found = compared(vector(*OVERFLOW), tmp_path, {"x": SPREAD})["a"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == {
        "tensor": "a",
        "node": "a",
        "operator": "Mul",
        "error": pytest.approx(0.0, abs=1e-3),
        "largest_magnitude": pytest.approx(90_000.0),
        "not_finite": 1,
        "size": 4,
        "begins": True,
    }
