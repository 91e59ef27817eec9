"""The verb `bisect`: planted nodes are found, nothing else is kept exact, and the recipe fixes the graph."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from math import ceil, log2
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from refdiff.calibration.bisect import BudgetExhausted, SearchBudget, find_smallest

ENOUGH = 10_000

names = st.builds("{}{}".format, st.sampled_from(["", "a/", "b/", "b/c/"]), st.sampled_from("xyz"))
answers = st.binary(min_size=8, max_size=8).map(lambda each: int.from_bytes(each, "big"))
"""One bit for each set of at most six nodes."""

few_nodes = st.lists(names, min_size=1, max_size=6, unique=True)
many_nodes = st.lists(
    st.builds("m{}/n{}".format, st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=40, unique=True
)


class Asked:
    """A question that keeps a list of what it was asked."""

    def __init__(self, answer: Callable[[frozenset[str]], bool]) -> None:
        self._answer = answer
        self.sets: list[frozenset[str]] = []

    def __call__(self, nodes: frozenset[str]) -> bool:
        self.sets.append(nodes)
        return self._answer(nodes)


def any_answer(nodes: list[str], bits: int) -> Callable[[frozenset[str]], bool]:
    """One bit for each set of nodes; all of them together are inside, as a search expects."""

    def answer(kept: frozenset[str]) -> bool:
        number = sum(1 << index for index, node in enumerate(nodes) if node in kept)
        return len(kept) == len(nodes) or bool(bits >> number & 1)

    return answer


def needs(*needed: Iterable[str]) -> Callable[[frozenset[str]], bool]:
    """Inside with all nodes of any one of these sets."""
    return lambda kept: any(kept.issuperset(each) for each in needed)


@given(few_nodes, answers, st.lists(names, max_size=4))
def test_what_is_found_is_inside_and_no_node_of_it_can_be_left_out(
    nodes: list[str], bits: int, guess: list[str]
) -> None:
    answer = any_answer(nodes, bits)
    found = find_smallest(nodes, SearchBudget(answer, most=ENOUGH), guess=guess)
    assert found.minimal
    assert answer(frozenset(found.nodes))
    assert not any(answer(frozenset(found.nodes) - {node}) for node in found.nodes)


@given(few_nodes, answers, st.lists(names, max_size=4))
def test_nodes_come_in_the_graphs_order(nodes: list[str], bits: int, guess: list[str]) -> None:
    found = find_smallest(nodes, SearchBudget(any_answer(nodes, bits), most=ENOUGH), guess=guess)
    assert list(found.nodes) == [node for node in nodes if node in found.nodes]


@given(few_nodes, answers, st.lists(names, max_size=4))
def test_nothing_is_tried_twice_and_every_trial_is_counted(
    nodes: list[str], bits: int, guess: list[str]
) -> None:
    asked = Asked(any_answer(nodes, bits))
    found = find_smallest(nodes, SearchBudget(asked, most=ENOUGH), guess=guess)
    assert found.trials == len(asked.sets) == len(set(asked.sets))


@given(few_nodes, answers, st.lists(names, max_size=4), st.integers(0, 12))
@example(["x", "y"], 0, [], 0)
def test_when_trials_run_out_the_smallest_set_that_was_inside_is_left(
    nodes: list[str], bits: int, guess: list[str], most: int
) -> None:
    asked = Asked(any_answer(nodes, bits))
    whole = find_smallest(nodes, SearchBudget(any_answer(nodes, bits), most=ENOUGH), guess=guess)
    found = find_smallest(nodes, SearchBudget(asked, most=most), guess=guess)
    assert len(asked.sets) == found.trials == min(most, whole.trials)
    assert found.minimal == (whole.trials <= most)
    if found.minimal:
        assert found == whole
    else:
        inside = [kept for kept in asked.sets if any_answer(nodes, bits)(kept)]
        assert len(found.nodes) == min(map(len, inside), default=len(nodes))
        assert frozenset(found.nodes) in {*inside, frozenset(nodes)}


@pytest.mark.slow
@given(st.data(), many_nodes)
def test_of_nodes_that_are_all_needed_exactly_those_are_found(data: st.DataObject, nodes: list[str]) -> None:
    needed = data.draw(st.sets(st.sampled_from(nodes)))
    guess = data.draw(st.lists(st.sampled_from(nodes)))
    assert set(find_smallest(nodes, SearchBudget(needs(needed), most=ENOUGH), guess=guess).nodes) == needed


@pytest.mark.slow
@given(st.data(), many_nodes)
def test_trials_grow_with_the_needed_nodes_and_the_logarithm_of_all(
    data: st.DataObject, nodes: list[str]
) -> None:
    needed = data.draw(st.sets(st.sampled_from(nodes), max_size=4))
    found = find_smallest(nodes, SearchBudget(needs(needed), most=ENOUGH))
    halvings = ceil(log2(len(nodes)))  # of modules there are no more than nodes
    assert found.trials <= 2 * (1 + len(needed) * (1 + halvings)) + len(needed)


@pytest.mark.slow
@given(st.data(), many_nodes)
def test_a_guess_that_suffices_keeps_the_search_inside_it(data: st.DataObject, nodes: list[str]) -> None:
    needed = data.draw(st.sets(st.sampled_from(nodes), min_size=1))
    guess = needed | data.draw(st.sets(st.sampled_from(nodes)))
    assume(len(guess) < len(nodes))
    asked = Asked(needs(needed))
    find_smallest(nodes, SearchBudget(asked, most=ENOUGH), guess=sorted(guess))
    assert all(kept <= guess for kept in asked.sets)


@pytest.mark.slow
@given(st.data(), many_nodes)
def test_a_guess_that_does_not_suffice_costs_one_trial(data: st.DataObject, nodes: list[str]) -> None:
    needed = data.draw(st.sets(st.sampled_from(nodes), min_size=1))
    guess = data.draw(st.sets(st.sampled_from(nodes), min_size=1))
    assume(not needed <= guess)
    without = find_smallest(nodes, SearchBudget(needs(needed), most=ENOUGH))
    found = find_smallest(nodes, SearchBudget(needs(needed), most=ENOUGH), guess=sorted(guess))
    assert found.nodes == without.nodes
    assert without.trials <= found.trials <= without.trials + 1


@pytest.mark.parametrize(("most", "left"), [(0, 8), (1, 8), (2, 4), (3, 2)])
def test_each_trial_that_was_inside_leaves_fewer_nodes_when_there_are_no_more(most: int, left: int) -> None:
    found = find_smallest(list("abcdefgh"), SearchBudget(needs({"a"}), most=most))
    assert found.nodes == tuple("abcdefgh")[:left]
    assert not found.minimal


def test_of_two_sets_that_suffice_one_is_found_not_both() -> None:
    nodes = ["a/x", "a/y", "b/x", "b/y"]
    found = find_smallest(nodes, SearchBudget(needs({"a/x", "b/y"}, {"a/y"}), most=ENOUGH))
    assert set(found.nodes) in ({"a/x", "b/y"}, {"a/y"})


def test_nodes_that_are_only_inside_together_with_an_unnecessary_one_are_pruned() -> None:
    # More nodes are not always better: with x, y is needed too; without x nothing but z is.
    answers = {frozenset("xyz"), frozenset("xy"), frozenset("z")}
    found = find_smallest(["x", "y", "z"], SearchBudget(lambda kept: kept in answers, most=ENOUGH))
    assert frozenset(found.nodes) in answers
    assert len(found.nodes) < 3


def test_modules_are_tried_before_their_nodes() -> None:
    nodes = [f"{module}/{node}" for module in "abcd" for node in "wxyz"]
    asked = Asked(needs({"c/y"}))
    assert find_smallest(nodes, SearchBudget(asked, most=ENOUGH)).nodes == ("c/y",)
    assert all(len(kept) % 4 == 0 for kept in asked.sets if len(kept) > 4)
    assert len(asked.sets) < 10


def test_where_nothing_is_broken_nothing_is_kept() -> None:
    found = find_smallest(["a", "b"], SearchBudget(lambda _: True, most=ENOUGH))
    assert (found.nodes, found.minimal) == ((), True)
    assert find_smallest([], SearchBudget(lambda _: True, most=ENOUGH)).nodes == ()


def test_names_that_are_no_candidates_are_no_guess() -> None:
    asked = Asked(needs({"b"}))
    assert find_smallest(["a", "b"], SearchBudget(asked, most=ENOUGH), guess=["elsewhere", "b"]).nodes == (
        "b",
    )
    assert all("elsewhere" not in kept for kept in asked.sets)


def test_a_known_answer_costs_no_trial() -> None:
    trials = SearchBudget(needs({"a"}), most=1)
    assert trials(["a", "b"])
    assert trials(["b", "a"])
    assert trials.count == 1
    with pytest.raises(BudgetExhausted):
        trials(["a"])


pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration import bisect
from refdiff.cli import main
from refdiff.contracts.recipe import read_recipe
from refdiff.errors import GateError, InputError
from tests.support.damage import copy_of, edit_manifest
from tests.support.planted import nan_in_weight, overflow, planted
from tests.support.recipes import eight_bit_recipe_of
from tests.support.small_graphs import BUNDLE

GRAPH = "clip_text"

TENSOR = "blocks.1.block.mlp.c_fc/Add"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return planted(BUNDLE, tmp_path_factory.mktemp("planted") / "bundle", GRAPH, overflow(TENSOR, half=False))


@pytest.mark.slow
def test_a_planted_overflow_is_found_and_nothing_else_is_kept(
    overflowing: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, blamed = overflowing
    target = tmp_path / "recipe.json"
    assert main(["bisect", str(bundle), "--graph", GRAPH, "-o", str(target), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["nodes"] == [blamed, f"{TENSOR}/down"]
    assert document["minimal"]
    assert document["kept_in"] == "fp32"
    assert document["first"]["node"] == blamed
    assert document["broken"]["error"] is None  # infinite
    assert document["fixed"]["inside"]
    rule = read_recipe(target).graphs[GRAPH].fp32[-1]
    assert list(rule.nodes) == document["nodes"]
    assert rule.origin == "bisect"
    assert bisect.bisect(bundle, graph=GRAPH, recipe=target).broken is None


@pytest.mark.slow
def test_the_table_names_the_nodes(
    overflowing: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, blamed = overflowing
    assert main(["bisect", str(bundle), "--graph", GRAPH, "-o", str(tmp_path / "recipe.json")]) == 0
    out = capsys.readouterr().out
    assert blamed in out
    assert "kept in fp32" in out
    assert "none of them can be left out" in out


@pytest.mark.slow
def test_a_graph_that_is_inside_its_tolerance_leaves_nothing_to_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "recipe.json"
    assert main(["bisect", "mini", "--graph", GRAPH, "-o", str(target)]) == 0
    assert "nothing to find" in capsys.readouterr().out
    assert not target.exists()


@pytest.mark.slow
def test_a_planted_nan_is_named_since_no_precision_fixes_it(tmp_path: Path) -> None:
    node = "blocks.1.block.mlp.c_fc/MatMul"
    bundle, blamed = planted(BUNDLE, tmp_path / "bundle", GRAPH, nan_in_weight(node))
    with pytest.raises(GateError, match="broken in fp32") as raised:
        bisect.bisect(bundle, graph=GRAPH)
    assert blamed in str(raised.value)


@pytest.mark.slow
def test_a_planted_bad_range_is_found_and_its_readers_leave_eight_bits(tmp_path: Path) -> None:
    sound = eight_bit_recipe_of(GRAPH)
    quantized = sound.graphs[GRAPH].quantized
    assert quantized is not None
    tensor = (
        "ln_final/LayerNormalization"
        if "ln_final/LayerNormalization" in quantized.ranges
        else max(quantized.ranges, key=lambda name: quantized.ranges[name])
    )
    ranges = {**quantized.ranges, tensor: quantized.ranges[tensor] / 1000}
    wrong = dataclasses.replace(sound.graphs[GRAPH], quantized=dataclasses.replace(quantized, ranges=ranges))
    path = tmp_path / "int8.json"
    path.write_text(dataclasses.replace(sound, graphs={**sound.graphs, GRAPH: wrong}).to_text())
    report = bisect.bisect("mini", graph=GRAPH, recipe=path)
    assert report.precision == "int8"
    assert report.kept_in == "fp16"
    model = ir.load(BUNDLE / f"{GRAPH}.onnx").graph
    readers = [
        node.name
        for node in model
        if node.inputs
        and node.inputs[0] is not None
        and node.inputs[0].name == tensor
        and node.name in quantized.nodes
    ]
    assert list(report.nodes) == readers
    assert list(report.recipe.graphs[GRAPH].excluded[-1].nodes) == readers


@pytest.mark.slow
def test_trials_that_run_out_are_reported(
    overflowing: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, blamed = overflowing
    arguments = ["bisect", str(bundle), "--graph", GRAPH, "-o", str(tmp_path / "recipe.json")]
    assert main([*arguments, "--most-trials", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert not document["minimal"]
    assert blamed in document["nodes"]
    assert document["fixed"]["inside"]
    assert "--most-trials" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"graph": "unet_taps"}, "name unet"),
        ({"graph": "vae_decoder"}, "choose one of: sd_text"),
        ({"graph": GRAPH, "half": "int4"}, "choose one of: fp16, bf16"),
        ({"graph": GRAPH, "feeds": "nowhere"}, "refdiff calibrate"),
        ({"graph": GRAPH, "most_trials": 0}, "1 or more"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bisect.bisect("mini", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", [["bisect", "mini", "--graph", GRAPH], ["audit", "mini"]])
def test_a_recipe_s_folder_that_is_missing_is_refused_before_any_work(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, "-o", str(tmp_path / "nowhere" / "recipe.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not a folder" in line


def test_a_converted_bundle_is_sent_back_to_its_fp32_one(tmp_path: Path) -> None:
    converted = copy_of(BUNDLE, tmp_path / "fp16")
    edit_manifest(converted, lambda document: document.update(precision="fp16"))
    with pytest.raises(InputError, match="the bundle it was made from"):
        bisect.bisect(converted, graph=GRAPH)
