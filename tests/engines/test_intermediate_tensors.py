"""Tensors inside a graph: which values come, in how many runs, and that nothing is left behind."""

import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.parity import measure_parity
from refdiff.contracts.session import Array
from refdiff.engines.check_session import CheckSession
from refdiff.engines.intermediate_tensors import probe
from refdiff.errors import EngineError, InputError
from refdiff.passes.half_precision import HalfPrecision
from tests.support.graph_files import link_away
from tests.support.small_graphs import (
    BUNDLE,
    fp32_nodes_of,
    half_graph,
    miniature_graph,
    noise,
    outputs,
    small_graph,
)

CHAIN = "a = Mul(x, w) b = Relu(a) c = Neg(b) d = Exp(c) y = Add(d, w)"
WEIGHT = np.float32([2.0, -3.0, 0.5])
FEEDS = [{"x": noise(3, seed=seed)} for seed in range(3)]


def chain() -> ir.Model:
    return small_graph("float[3] x => float[3] y", CHAIN, {"w": WEIGHT})


class CountedSession(CheckSession):
    """Counts its likes, and what they were asked for."""

    def __init__(self, model: Path | bytes, *, folder: Path | None = None) -> None:
        super().__init__(model, folder=folder)
        self.asked.append(self.output_names)

    asked: ClassVar[list[tuple[str, ...]]] = []


@pytest.fixture
def asked() -> list[tuple[str, ...]]:
    """What each session that `collected` opens has as outputs."""
    CountedSession.asked = []
    return CountedSession.asked


def collected(
    model: ir.Model | Path,
    feeds: Sequence[Mapping[str, Array]],
    names: Sequence[str],
    most_bytes: int = 1 << 30,
) -> dict[tuple[int, str], Array]:
    found = {}
    for index, name, values in probe(model, feeds, names, most_bytes=most_bytes, session_type=CountedSession):
        assert (index, name) not in found, "each pair comes once"
        found[index, name] = values
    return found


def test_inner_tensors_have_the_values_of_their_arithmetic() -> None:
    found = collected(chain(), FEEDS, ["a", "b", "d"])
    assert set(found) == {(index, name) for index in range(3) for name in "abd"}
    for index, feed in enumerate(FEEDS):
        a = feed["x"] * WEIGHT
        np.testing.assert_array_equal(found[index, "a"], a)
        np.testing.assert_array_equal(found[index, "b"], np.maximum(a, 0))
        np.testing.assert_allclose(found[index, "d"], np.exp(-np.maximum(a, 0)), rtol=1e-6)


def test_inputs_weights_and_outputs_can_be_asked_for() -> None:
    found = collected(chain(), FEEDS[:1], ["x", "w", "y"])
    np.testing.assert_array_equal(found[0, "x"], FEEDS[0]["x"])
    np.testing.assert_array_equal(found[0, "w"], WEIGHT)
    expected = np.exp(-np.maximum(found[0, "x"] * WEIGHT, 0)) + WEIGHT
    np.testing.assert_allclose(found[0, "y"], expected, rtol=1e-6)


@pytest.mark.slow
def test_an_output_is_the_same_as_in_an_ordinary_run() -> None:
    feeds, _ = open_bundle(BUNDLE, verify="size").golden()["sam_encoder"]
    path = BUNDLE / "sam_encoder.onnx"
    found = collected(path, [feeds], ["embedding", "image_encoder.neck.3/Pow"])
    np.testing.assert_array_equal(found[0, "embedding"], CheckSession(path).run(feeds)["embedding"])
    assert (found[0, "image_encoder.neck.3/Pow"] >= 0).all()


def test_a_name_that_is_asked_for_twice_comes_once() -> None:
    assert set(collected(chain(), FEEDS, ["a", "a"])) == {(0, "a"), (1, "a"), (2, "a")}


def test_no_feeds_and_no_names_give_nothing() -> None:
    assert collected(chain(), [], ["a"]) == {}
    assert collected(chain(), FEEDS, []) == {}


def test_what_would_be_too_much_at_once_is_fetched_in_several_runs(asked: list[tuple[str, ...]]) -> None:
    whole = collected(chain(), FEEDS, list("abcdy"))
    assert [len(names) for names in asked] == [5]
    asked.clear()
    parts = collected(chain(), FEEDS, list("abcdy"), most_bytes=2 * 3 * 4)
    assert [len(names) for names in asked] == [2, 2, 1]
    assert parts.keys() == whole.keys()
    assert all(np.array_equal(parts[key], whole[key]) for key in whole)


def test_a_tensor_larger_than_the_limit_comes_alone(asked: list[tuple[str, ...]]) -> None:
    assert len(collected(chain(), FEEDS, list("abc"), most_bytes=1)) == 9
    assert [len(names) for names in asked] == [1, 1, 1]


def test_a_dimension_without_a_size_counts_as_the_largest_batch(asked: list[tuple[str, ...]]) -> None:
    model = small_graph("float[n, 2] x => float[n, 2] y", "a = Relu(x) y = Neg(a)")
    feeds = [{"x": noise(4, 2)}, {"x": noise(8, 2)}]
    collected(model, feeds, ["a", "y"], most_bytes=2 * 8 * 2 * 4)
    collected(model, feeds, ["a", "y"], most_bytes=2 * 8 * 2 * 4 - 1)
    assert [len(names) for names in asked] == [2, 1, 1]


def test_integers_and_truths_come_as_they_are() -> None:
    model = small_graph(
        "float[2, 3] x => float[2, 3] y",
        "s = Shape(x) a = ArgMax(x) m = Greater(x, w) y = Relu(x)",
        {"w": WEIGHT},
    )
    found = collected(model, [{"x": noise(2, 3)}], ["s", "a", "m"])
    assert found[0, "s"].tolist() == [2, 3]
    assert (found[0, "a"].dtype, found[0, "m"].dtype) == (np.int64, np.bool_)


def test_half_precision_comes_as_float32_and_rounded() -> None:
    model = HalfPrecision("fp16", ("d",))(chain())
    x = np.float32([1 / 3, 1 / 7, 1 / 9])
    found = collected(model, [{"x": x}], ["x.float16", "a", "d", "y"])
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    half = x.astype(np.float16)
    np.testing.assert_array_equal(found[0, "x.float16"], half)
    np.testing.assert_array_equal(found[0, "a"], half * WEIGHT.astype(np.float16))
    assert not np.array_equal(found[0, "d"], found[0, "d"].astype(np.float16)), "an fp32 node is not rounded"
    np.testing.assert_array_equal(found[0, "y"], found[0, "y"].astype(np.float16))


def test_what_else_is_asked_for_changes_no_value() -> None:
    model, _ = half_graph("clip_text")
    feeds, _ = open_bundle(BUNDLE, verify="size").golden()["clip_text"]
    names = tuple(
        str(v.name) for n in model.graph for v in n.outputs if n.op_type in ("MatMul", "Softmax", "Add")
    )
    everything = outputs(model, feeds, (*names, "vector"))
    np.testing.assert_array_equal(everything["vector"], outputs(model, feeds)["vector"])
    alone = outputs(model, feeds, names[7:8])
    np.testing.assert_array_equal(everything[names[7]], alone[names[7]])


def test_a_trial_with_cast_weights_reads_them_from_the_fp32_bundle() -> None:
    model = miniature_graph("clip_text")
    HalfPrecision("fp16", fp32_nodes_of(model), weights="cast")(model)
    feeds, records = open_bundle(BUNDLE, verify="size").golden()["clip_text"]
    assert measure_parity(outputs(model, feeds)["vector"], records["vector"]).error < 1e-3


def test_the_graph_handed_over_stays_as_it_is() -> None:
    for model in (half_graph("sam_decoder")[0], chain()):
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        feeds = FEEDS[0] if "x" in {v.name for v in model.graph.inputs} else golden("sam_decoder")
        names = [str(v.name) for n in model.graph for v in n.outputs][:40:3]
        assert len(collected_in_bundle(model, feeds, names)) == len(names)
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def golden(name: str) -> Mapping[str, Array]:
    return open_bundle(BUNDLE, verify="size").golden()[name][0]


def collected_in_bundle(model: ir.Model, feeds: Mapping[str, Array], names: Sequence[str]) -> list[str]:
    return [name for _, name, _ in probe(model, [feeds], names, folder=BUNDLE)]


def test_nothing_is_written(tmp_path: Path) -> None:
    ir.save(chain(), tmp_path / "g.onnx", external_data="g.data", size_threshold_bytes=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for path in (*before, tmp_path):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        assert len(collected(tmp_path / "g.onnx", FEEDS, ["a", "y"])) == 6
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    finally:
        tmp_path.chmod(0o755)


def test_an_unknown_tensor_is_named() -> None:
    with pytest.raises(InputError, match=r"the graph g has no tensor 'nonsense'"):
        collected(chain(), FEEDS, ["a", "nonsense"])


def test_a_graph_without_types_is_refused_and_its_file_is_not(tmp_path: Path) -> None:
    model = HalfPrecision("fp16", ())(chain())
    expected = collected(model, FEEDS, ["a", "d"])
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type, value.shape = None, None
    ir.save(model, tmp_path / "g.onnx")
    with pytest.raises(
        InputError, match=r"has no type, expected types everywhere; hand over the graph's file"
    ):
        collected(ir.load(tmp_path / "g.onnx"), FEEDS, ["a"])
    found = collected(tmp_path / "g.onnx", FEEDS, ["a", "d"])
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_what_onnx_runtime_refuses_is_reported_in_one_line() -> None:
    with pytest.raises(EngineError, match=r"the graph failed in ONNX Runtime: ") as failed:
        collected(chain(), [{"x": noise(4)}], ["a"])
    assert "\n" not in str(failed.value)
    model = small_graph("float[2] x => float[2] y", "y = Relu(x)")
    model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load the graph: ") as failed:
        collected(model, [{"x": noise(2)}], ["y"])
    assert "\n" not in str(failed.value)


def test_a_graph_whose_data_file_has_hard_links_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for name in ("clip_text.onnx", "clip_text.onnx.data"):
        shutil.copyfile(BUNDLE / name, tmp_path / "cache" / name)
    path = link_away(tmp_path / "cache" / "clip_text.onnx", tmp_path / "installed")
    feeds, records = open_bundle(BUNDLE, verify="size").golden()["clip_text"]
    ((_, name, values),) = probe(path, [feeds], ["vector"])
    assert measure_parity(values, records[name]).error < 1e-4
