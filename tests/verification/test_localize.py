"""Planted faults inside real graphs are found and named; healthy graphs have none."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.accuracy.tolerances import GraphTolerance, graph_tolerance
from refdiff.calibration.ranges import smoothing_exponents
from refdiff.calibration.recipes import half_recipe
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.recipe import GraphRecipe, Quantized
from refdiff.contracts.session import Array
from refdiff.passes.convert import convert_graph
from refdiff.passes.quantize import Quantize
from refdiff.verification import localize
from refdiff.verification.divergence import Cause, NodeResult
from refdiff.verification.localize import TensorMatcher, find_first_divergence
from tests.support.planted import Plant, nan_in_weight, overflow, scale_times, weight_times
from tests.support.recipes import eight_bit_recipe_of
from tests.support.small_graphs import BUNDLE, noise, small_graph

Converted = Callable[[str, str], Path]


def recipe_of(graph: str, precision: str) -> GraphRecipe:
    """Half precision; int8 with ranges from the golden feed; or int8 behind SmoothQuant."""
    if precision == "fp16":
        bundle = open_bundle(BUNDLE, verify="size")
        made = half_recipe(bundle)
        return made.graphs[graph]
    recipe = eight_bit_recipe_of(graph).graphs[graph]
    if precision == "int8":
        return recipe
    quantized = recipe.quantized
    assert quantized is not None
    powers = smoothing_exponents(BUNDLE / f"{graph}.onnx", [golden(graph)], quantized.nodes)
    assert any(any(each) for each in powers.values())
    return dataclasses.replace(recipe, quantized=dataclasses.replace(quantized, smoothing=powers))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A graph of the miniature in fewer bits; read it, do not change it."""
    folder = tmp_path_factory.mktemp("converted")

    def convert(graph: str, precision: str) -> Path:
        path = folder / precision / f"{graph}.onnx"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            convert_graph(BUNDLE / f"{graph}.onnx", path, recipe_of(graph, precision))
        return path

    return convert


@functools.cache
def golden(graph: str) -> Mapping[str, Array]:
    return open_bundle(BUNDLE, verify="size").golden()[graph][0]


def planted(path: Path, plant: Plant) -> tuple[Path, str]:
    """The graph with a fault, in the folder of the original: its weights stay where they are."""
    model = ir.load(path)
    blamed = plant(model)
    target = path.with_name(f"{path.stem}-planted.onnx")
    ir.save(model, target)
    return target, blamed


def search(
    path: Path,
    graph: str,
    *,
    precision: str = "fp16",
    exact: Path | None = None,
    alone: bool = False,
    **options: Any,
) -> tuple[Cause, NodeResult] | None:
    limit = graph_tolerance("int8" if precision == "smoothed" else precision, graph)
    sound = None if alone else exact or BUNDLE / f"{graph}.onnx"
    return find_first_divergence(path, sound, golden(graph), limit, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "precision"),
    [("clip_text", "fp16"), ("sd_text", "fp16"), ("sd_text", "int8"), ("sd_text", "smoothed")],
)
def test_no_node_of_a_healthy_graph_is_outside_its_tolerance(converted, graph, precision):
    found = search(converted(graph, precision), graph, precision=precision)
    assert found is not None
    assert found[0] == "largest growth", found[1]
    assert 0 < found[1].difference.error < graph_tolerance("int8", graph).error


@pytest.mark.slow
def test_every_float_tensor_of_a_converted_graph_has_its_match(converted):
    sound = ir.load(BUNDLE / "sd_text.onnx").graph
    for precision in ("fp16", "int8"):
        known = TensorMatcher(sound)
        for each in ir.load(converted("sd_text", precision)).graph:
            if each.op_type != "QuantizeLinear":
                assert known.match(each, 0) is not None, each.name


@pytest.mark.parametrize("alone", [False, True])
def test_an_overflow_that_only_the_half_precision_graph_has_is_named(converted, alone):
    path, blamed = planted(converted("clip_text", "fp16"), overflow("blocks.0/Add_2"))
    found = search(path, "clip_text", alone=alone)
    assert found is not None
    cause, result = found
    assert (cause, result.node, result.operator, result.type) == ("not finite", blamed, "Mul", "FLOAT16")
    assert result.difference.inf > 0
    assert result.difference.expected is None


@pytest.mark.slow
def test_an_overflow_that_fp32_can_hold_is_named_with_what_it_should_be(converted, tmp_path):
    exact, blamed = planted(
        copied(BUNDLE / "clip_text.onnx", tmp_path), overflow("blocks.0/Add_2", half=False)
    )
    path = tmp_path / "half.onnx"
    convert_graph(exact, path, recipe_of("clip_text", "fp16"))
    found = search(path, "clip_text", exact=exact)
    assert found is not None
    cause, result = found
    assert (cause, result.node) == ("not finite", blamed)
    assert result.difference.largest_expected is not None
    assert result.difference.largest_expected > 65504
    assert search(exact, "clip_text", alone=True) is None


def test_a_weight_that_makes_half_precision_overflow_names_the_product(converted):
    name = "blocks.0.block.mlp.c_fc/MatMul"
    path, blamed = planted(converted("clip_text", "fp16"), weight_times(name, 3e4))
    found = search(path, "clip_text")
    assert found is not None
    assert (found[0], found[1].node) == ("not finite", blamed)


def test_a_weight_that_is_off_but_finite_is_named_too(converted):
    name = "blocks.1.block.attn.out_proj/MatMul"
    path, blamed = planted(converted("clip_text", "fp16"), weight_times(name, 1.5))
    found = search(path, "clip_text")
    assert found is not None
    assert (found[0], found[1].node) == ("outside its tolerance", blamed)
    assert found[1].difference.error == pytest.approx(0.5, rel=0.01)
    assert search(path, "clip_text", alone=True) is None, "without an exact graph there is nothing to see"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "name", "alone"),
    [
        ("clip_text", "blocks.1.block.mlp.c_proj/MatMul", False),
        ("clip_text", "blocks.1.block.mlp.c_proj/MatMul", True),
        ("vae_encoder", "encoder.conv_in/Conv", False),
    ],
)
def test_a_nan_in_a_weight_names_the_node_that_reads_it(converted, graph, name, alone):
    path, blamed = planted(converted(graph, "fp16"), nan_in_weight(name))
    found = search(path, graph, alone=alone)
    assert found is not None
    assert (found[0], found[1].node) == ("not finite", blamed)
    assert found[1].difference.nan > 0


@pytest.mark.slow
@pytest.mark.parametrize("factor", [50, 1 / 50])
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("layers.0.layer_norm1/LayerNormalization/DQ", "int8"),
        ("layers.0.layer_norm1/LayerNormalization/DQ", "smoothed"),
        ("layers.1.mlp.activation_fn/Mul_1/DQ", "int8"),
        ("token_embedding.weight/DQ", "int8"),
        ("layers.0.self_attn.out_proj.weight.T/DQ", "int8"),
    ],
)
def test_a_range_that_is_fifty_times_off_names_its_dequantisation(converted, name, factor, precision):
    path, blamed = planted(converted("sd_text", precision), scale_times(name, factor))
    found = search(path, "sd_text", precision=precision)
    assert found is not None
    cause, result = found
    assert (cause, result.node, result.operator) == ("outside its tolerance", blamed, "DequantizeLinear")
    assert result.difference.largest_expected is not None
    if factor < 1 or "weight" in name:
        ratio = result.difference.largest / result.difference.largest_expected
        assert ratio == pytest.approx(factor, rel=0.1)


@pytest.mark.slow
def test_few_bytes_at_a_time_find_the_same(converted):
    path, _ = planted(converted("clip_text", "fp16"), nan_in_weight("blocks.0/MatMul"))
    whole = search(path, "clip_text")
    asked: list[Sequence[str]] = []

    def counted(model: ir.Model, folder: Path, feeds: Mapping[str, Array]) -> localize.Read:
        read = localize.read_tensors(model, folder, feeds)

        def counting(names: Sequence[str]) -> dict[str, Array]:
            asked.append(tuple(names))
            return read(names)

        return counting

    # A NaN is not equal to itself, so what was found is compared as text.
    assert str(search(path, "clip_text", most_bytes=1, reader=counted)) == str(whole)
    assert {len(names) for names in asked} == {1}
    assert len(asked) == 2 * 4, "nothing after the node to blame is fetched"


def copied(path: Path, folder: Path) -> Path:
    target = folder / path.name
    target.write_bytes(path.read_bytes())
    data = path.with_name(f"{path.name}.data")
    (folder / data.name).write_bytes(data.read_bytes())
    return target


LIMIT = GraphTolerance(error=0.01, correlation=0.999)


def searched(
    broken: ir.Model, sound: ir.Model | None, folder: Path, x: Array
) -> tuple[Cause, NodeResult] | None:
    ir.save(broken, folder / "broken.onnx")
    if sound is not None:
        ir.save(sound, folder / "sound.onnx")
    return find_first_divergence(
        folder / "broken.onnx", None if sound is None else folder / "sound.onnx", {"x": x}, LIMIT
    )


def test_the_same_graph_twice_has_no_fault(tmp_path):
    model = small_graph("float[4] x => float[4] y", "a = Relu(x) y = Neg(a)")
    assert searched(model, model, tmp_path, noise(4)) is None


def test_infinities_that_both_graphs_have_are_no_fault(tmp_path):
    model = small_graph(
        "float[4] x => float[4] y",
        "m = Greater(x, w) a = Where(m, x, b) y = Exp(a)",
        {"w": np.float32([0.0]), "b": np.float32([-np.inf])},
    )
    x = noise(4)
    assert (x < 0).any()
    assert searched(model, model, tmp_path, x) is None


def test_a_node_of_another_operator_is_no_match(tmp_path):
    broken, sound = (
        small_graph("float[4] x => float[4] y", f"a = {operator}(x) y = Neg(a)")
        for operator in ("Relu", "Abs")
    )
    found = searched(broken, sound, tmp_path, noise(4))
    assert found is not None
    assert found[1].node == "y", "`a` has nothing to be compared with, `y` has"


def test_what_was_put_in_between_carries_the_error_of_what_it_read(tmp_path):
    sound = small_graph("float[4] x => float[4] y", "a = Mul(x, w) y = Neg(a)", {"w": np.float32([1.0])})
    broken = small_graph(
        "float[4] x => float[4] y",
        "a = Mul(x, w) extra = Identity(a) y = Neg(extra)",
        {"w": np.float32([1.005])},
    )
    found = searched(broken, sound, tmp_path, noise(4))
    assert found is not None
    assert (found[0], found[1].node) == ("largest growth", "a"), "`y` adds nothing to what `a` did"


def test_the_match_of_q_dq_is_what_they_were_given():
    signature, body = "float[2, 4] x => float[2, 3] y", "a = Relu(x) b = MatMul(a, w) y = MatMul(b, v)"
    weights = {"w": noise(4, 3), "v": noise(3, 3)}
    sound, broken = (small_graph(signature, body, weights) for _ in range(2))
    quantized = Quantized(type="int8", nodes=("b", "y"), ranges={"a": 3.0, "b": 9.0}, method="minmax")
    Quantize(quantized, ("b", "y"))(broken)
    known = TensorMatcher(sound.graph)
    found = {
        each.name: known.match(each, 0).tensor for each in broken.graph if each.op_type == "DequantizeLinear"
    }
    assert found == {"a/DQ": "a", "b/DQ": "b", "w/DQ": "w", "v/DQ": "v"}


def test_the_match_of_a_cast_input_is_the_input():
    sound = small_graph("float[4] x => float[4] y", "y = Neg(x)")
    broken = small_graph(
        "float[4] x => float[4] y", "h = Cast <to = 10> (x) s = Cast <to = 1> (h) y = Neg(s)"
    )
    known = TensorMatcher(sound.graph)
    assert [known.match(each, 0).tensor for each in broken.graph] == ["x", "x", "y"]


def norm(scale: np.ndarray) -> ir.Graph:
    weights = {"s": scale.astype(np.float32), "b": np.zeros(3, np.float32)}
    return small_graph("float[2, 3] x => float[2, 3] y", "y = LayerNormalization(x, s, b)", weights).graph


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        ([1.5, 0.75, 12.0], [1.5, 1.5, 1.5], [1.0, 2.0, 0.125]),
        ([1.5, 1.5, 1.5], [1.5, 1.5, 1.5], None),
        ([1.5, 0.7, 1.5], [1.5, 1.5, 1.5], None),
        ([1.5, -0.75, 1.5], [1.5, 1.5, 1.5], None),
        ([1.5, np.nan, 1.5], [1.5, 1.5, 1.5], None),
        ([0.0, 0.75, 0.0], [0.0, 1.5, 1.5], [1.0, 2.0, 1.0]),
    ],
)
def test_only_powers_of_two_in_a_norm_s_scale_are_smoothing(ours, theirs, factors):
    known = TensorMatcher(norm(np.array(theirs))).match(norm(np.array(ours))[0], 0)
    assert known is not None
    assert (known.factors is None) is (factors is None)
    if factors is not None:
        assert known.factors.tolist() == factors
        assert known.unsmooth(np.ones((2, 3), np.float32)).tolist() == [factors] * 2
