"""Precision recipes: what is written is read again, and what is no recipe is refused by name."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.contracts.recipe import (
    HALVES,
    ORIGINS,
    QUANTIZED,
    GraphRecipe,
    Quantized,
    Recipe,
    Rule,
    match_nodes,
    match_rules,
    read_recipe,
)
from refdiff.errors import InputError
from tests.support.fuzzing import fuzz_file

RECIPE = Recipe(
    model="paper doll",
    sources={"unet": "ab" * 32},
    graphs={
        "unet": GraphRecipe(
            half="fp16",
            fp32=(Rule(nodes=("*/Softmax", "mid.norm/*"), because="sums", origin="rule"),),
            quantized=Quantized(
                type="int8",
                nodes=("up.0/MatMul",),
                ranges={"up.0/Add": 3.1, "quiet": 0.0},
                method="percentile",
                smoothing={"norm/LayerNormalization": (0, 2, -1)},
            ),
            half_weights=(Rule(nodes=("mid.attn/*",), because="near-ties", origin="rule"),),
            excluded=(Rule(nodes=("conv_out/Conv",), because="the prediction itself", origin="sensitivity"),),
        ),
        "clip_text": GraphRecipe(half="bf16"),
    },
)


def document() -> dict[str, Any]:
    return json.loads(RECIPE.to_text())


def written(folder: Path, content: object) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps(content))
    return path


def test_a_written_recipe_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(RECIPE.to_text())
    assert read_recipe(path) == RECIPE
    assert read_recipe(path).to_text() == RECIPE.to_text()


names = st.text(min_size=1)
rules = st.builds(Rule, nodes=st.lists(names).map(tuple), because=st.text(), origin=st.sampled_from(ORIGINS))
quantised = st.builds(
    Quantized,
    type=st.sampled_from(QUANTIZED),
    nodes=st.lists(names).map(tuple),
    ranges=st.dictionaries(names, st.floats(0, allow_nan=False, allow_infinity=False)),
    method=st.text(),
    smoothing=st.dictionaries(names, st.lists(st.integers(-20, 20)).map(tuple)),
)
graphs = st.builds(
    GraphRecipe,
    half=st.sampled_from(HALVES),
    fp32=st.lists(rules).map(tuple),
    half_weights=st.lists(rules).map(tuple),
    quantized=st.none() | quantised,
    excluded=st.lists(rules).map(tuple),
)
recipes = st.builds(
    Recipe, model=st.text(), sources=st.dictionaries(names, st.text()), graphs=st.dictionaries(names, graphs)
)


@pytest.mark.slow
@settings(max_examples=25)
@given(recipes)
def test_any_recipe_survives_its_file(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(recipe.to_text()), where="a file") == recipe


def test_the_text_names_its_format_and_ends_with_a_line() -> None:
    assert document()["format"] == 1
    assert RECIPE.to_text().endswith("}\n")


def test_the_file_keeps_the_names_of_its_first_format() -> None:
    assert list(document()["graphs"]["unet"]) == ["half", "fp32", "half_weights", "quantised", "left"]


def test_what_may_be_left_out_has_its_plain_meaning() -> None:
    short = {"format": 1, "model": "m", "sources": {}, "graphs": {"unet": {"half": "fp16"}}}
    assert Recipe.from_json(short, where="a file").graphs == {"unet": GraphRecipe(half="fp16")}
    rule = {"nodes": ["a"], "because": "I saw it overflow"}
    graph = Recipe.from_json(
        {**short, "graphs": {"unet": {"half": "fp16", "fp32": [rule]}}}, where=""
    ).graphs["unet"]
    assert graph.fp32[0].origin == "hand"


def test_a_graph_is_called_after_its_fewest_bits() -> None:
    unet = RECIPE.graphs["unet"]
    assert unet.precision == "int8"
    assert dataclasses.replace(unet, quantized=None).precision == "fp16"
    assert RECIPE.graphs["clip_text"].precision == "bf16"


Change = Callable[[dict[str, Any]], object]
BAD: dict[str, tuple[Change, str]] = {
    "no format": (lambda d: d.pop("format"), "got format None, expected 1"),
    "another format": (lambda d: d.update(format=2), "got format 2, expected 1"),
    "a truth as format": (lambda d: d.update(format=True), "got format True, expected 1"),
    "no model": (lambda d: d.pop("model"), "'model' is missing"),
    "a number as model": (lambda d: d.update(model=5), "model is 5, expected text"),
    "no sources": (lambda d: d.pop("sources"), "'sources' is missing"),
    "a list of sources": (lambda d: d.update(sources=[]), "sources is [], expected an object with names"),
    "a digest that is none": (lambda d: d["sources"].update(unet=1), "sources unet is 1, expected text"),
    "no graphs": (lambda d: d.pop("graphs"), "'graphs' is missing"),
    "a list of graphs": (lambda d: d.update(graphs=["unet"]), "graphs is ['unet'], expected an object"),
    "a word as graph": (lambda d: d["graphs"].update(unet="fp16"), "unet is 'fp16', expected an object"),
    "an unknown field": (lambda d: d.update(colour="red"), "colour"),
    "an unknown field of a graph": (lambda d: unet(d).update(fp23=[]), "fp23"),
    "no half": (lambda d: unet(d).pop("half"), "'half' is missing"),
    "an unknown half": (lambda d: unet(d).update(half="fp8"), "half is 'fp8', expected one of fp16, bf16"),
    "a list as half": (lambda d: unet(d).update(half=["fp16"]), "half is ['fp16'], expected one of"),
    "null for rules": (lambda d: unet(d).update(fp32=None), "fp32 is None, expected a list"),
    "a word for rules": (lambda d: unet(d).update(left="conv_out"), "left is 'conv_out', expected a list"),
    "a word as rule": (lambda d: unet(d).update(left=["conv_out"]), "left is 'conv_out', expected an object"),
    "a word as nodes": (lambda d: rule(d).update(nodes="*/Softmax"), "nodes is '*/Softmax', expected a list"),
    "a number as node": (lambda d: rule(d).update(nodes=[3]), "nodes is 3, expected text"),
    "no nodes": (lambda d: rule(d).pop("nodes"), "'nodes' is missing"),
    "no reason": (lambda d: rule(d).pop("because"), "'because' is missing"),
    "a reason that is none": (lambda d: rule(d).update(because=None), "because is None, expected text"),
    "an unknown origin": (
        lambda d: rule(d).update(origin="rumour"),
        "origin is 'rumour', expected one of rule,",
    ),
    "an unknown field of a rule": (lambda d: rule(d).update(why="so"), "why"),
    "a word as quantised": (
        lambda d: unet(d).update(quantised="int8"),
        "quantised is 'int8', expected an object",
    ),
    "an unknown type": (lambda d: bits(d).update(type="int4"), "type is 'int4', expected one of int8, fp8"),
    "no ranges": (lambda d: bits(d).pop("ranges"), "'ranges' is missing"),
    "a list of ranges": (lambda d: bits(d).update(ranges=[3.0]), "ranges is [3.0], expected an object"),
    "a word as range": (
        lambda d: bits(d)["ranges"].update(t="wide"),
        "the range of t is 'wide', expected a number",
    ),
    "a truth as range": (
        lambda d: bits(d)["ranges"].update(t=True),
        "the range of t is True, expected a number",
    ),
    "a negative range": (
        lambda d: bits(d)["ranges"].update(t=-1),
        "the range of t is -1, expected 0 or more",
    ),
    "a range that is NaN": (lambda d: bits(d)["ranges"].update(t=float("nan")), "the range of t is nan"),
    "an infinite range": (lambda d: bits(d)["ranges"].update(t=float("inf")), "the range of t is inf"),
    "a range beyond floats": (lambda d: bits(d)["ranges"].update(t=10**400), "expected a finite number"),
    "no method": (lambda d: bits(d).pop("method"), "'method' is missing"),
    "a fraction as smoothing": (
        lambda d: bits(d).update(smoothing={"t": [0.5]}),
        "smoothing of t is 0.5, expected a whole number",
    ),
    "a number as smoothing": (lambda d: bits(d).update(smoothing={"t": 2}), "t is 2, expected a list"),
}


def unet(document: dict[str, Any]) -> dict[str, Any]:
    return document["graphs"]["unet"]


def rule(document: dict[str, Any]) -> dict[str, Any]:
    return unet(document)["fp32"][0]


def bits(document: dict[str, Any]) -> dict[str, Any]:
    return unet(document)["quantised"]


@pytest.mark.parametrize("name", BAD)
def test_a_recipe_that_is_none_is_refused_with_its_file_and_its_fault(name: str, tmp_path: Path) -> None:
    change, fault = BAD[name]
    change(bad := copy.deepcopy(document()))
    path = written(tmp_path, bad)
    with pytest.raises(InputError) as refused:
        read_recipe(path)
    message = str(refused.value)
    assert message.startswith(str(path))
    assert fault in message
    assert "\n" not in message


@pytest.mark.parametrize("content", ["[]", '"recipe"', "3", "null"])
def test_json_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"mine\.json: expected a JSON object, got"):
        read_recipe(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"]
)
def test_a_file_that_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.json is not readable JSON"):
        read_recipe(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no recipe .*absent\.json"):
        read_recipe(tmp_path / "absent.json")
    with pytest.raises(InputError, match="is not readable JSON"):
        read_recipe(tmp_path)


NODES = ("a/MatMul", "a/MatMul_1", "a.b/Softmax", "c[0]/Add", "c0/Add", "star*/Add")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a/MatMul", {"a/MatMul"}),
        ("a/*", {"a/MatMul", "a/MatMul_1"}),
        ("a*", {"a/MatMul", "a/MatMul_1", "a.b/Softmax"}),
        ("*/Add", {"c[0]/Add", "c0/Add", "star*/Add"}),
        ("*", set(NODES)),
        ("*Mat*_1", {"a/MatMul_1"}),
        ("c[0]/*", {"c[0]/Add"}),
        ("star*/Add", {"star*/Add"}),
    ],
)
def test_a_star_stands_for_any_part_and_nothing_else_is_special(pattern: str, found: set[str]) -> None:
    assert match_nodes([pattern], NODES, where="unet") == found


@pytest.mark.parametrize("pattern", ["a/MatMu", "A/MatMul", "b/*", "a.b/Softma?", ""])
def test_a_name_that_is_no_nodes_is_refused(pattern: str) -> None:
    with pytest.raises(InputError) as refused:
        match_nodes(["a/MatMul", pattern], NODES, where="unet")
    assert (
        str(refused.value)
        == f"unet: the recipe names {pattern!r}, but no node has that name; correct the recipe"
    )


def test_rules_name_all_their_nodes_together() -> None:
    first = Rule(nodes=("a/*",), because="one")
    second = Rule(nodes=("a/MatMul", "c0/Add"), because="two")
    assert match_rules([first, second], NODES, where="unet") == {"a/MatMul", "a/MatMul_1", "c0/Add"}
    assert match_rules([], NODES, where="unet") == frozenset()


def test_any_recipe_file_is_read_or_refused(tmp_path: Path) -> None:
    sample = json.dumps(document()).encode()
    assert fuzz_file(read_recipe, [sample], tmp_path / "recipe.json", seed=7, allowed=InputError).refused
