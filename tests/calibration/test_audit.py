"""The verb `audit`: what was planted is found and named, and the recipe fixes what a recipe can."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from refdiff.contracts.options import RunOptions
from refdiff.data.synthetic import calibration_scenes

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration import audit, bisect, calibrate
from refdiff.cli import main
from refdiff.contracts.recipe import Recipe, match_nodes, read_recipe
from refdiff.errors import InputError
from tests.support.damage import copy_of, edit_manifest
from tests.support.planted import nan_in_weight, overflow, planted
from tests.support.recipes import eight_bit_recipe_of, half_recipe_of_mini
from tests.support.small_graphs import BUNDLE

GRAPH = "clip_text"
"""Small, and run once for each phrase."""

TENSOR = "blocks.1.block.mlp.c_fc/Add"


@pytest.fixture(scope="module")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "feeds"
    calibrate.calibrate(BUNDLE, calibration_scenes(2), output=folder, options=[RunOptions(variant="edge")])
    return folder


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The fp32 bundle with something in it that half precision cannot hold, and the node that makes it."""
    return planted(BUNDLE, tmp_path_factory.mktemp("planted") / "bundle", GRAPH, overflow(TENSOR, half=False))


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The fp32 bundle with a NaN in a weight, and the node that reads it."""
    node = "blocks.1.block.mlp.c_fc/MatMul"
    return planted(BUNDLE, tmp_path_factory.mktemp("planted") / "bundle", GRAPH, nan_in_weight(node))


def built_in() -> Recipe:
    return half_recipe_of_mini()


@pytest.mark.slow
def test_a_healthy_graph_gets_the_built_in_recipe(feeds: Path) -> None:
    report = audit.audit("mini", graphs=(GRAPH,), feeds=feeds)
    assert report.passed
    assert report.failure is None
    assert [each.graph for each in report.graphs] == [GRAPH]
    assert report.graphs[0].room > 2
    assert report.recipe == built_in()


@pytest.mark.slow
def test_a_planted_overflow_is_named_and_its_recipe_fixes_it(
    overflowing: tuple[Path, str], feeds: Path, tmp_path: Path
) -> None:
    bundle, blamed = overflowing
    report = audit.audit(bundle, graphs=(GRAPH,), feeds=feeds)
    (tmp_path / "recipe.json").write_text(report.recipe.to_text())
    (found,) = report.graphs
    assert report.passed
    assert blamed in {finding.node for finding in found.findings if finding.kind == "overflow"}
    named = match_nodes((name for rule in found.proposed for name in rule.nodes), {blamed}, where=GRAPH)
    assert named == {blamed}
    assert all(rule.origin == "audit" for rule in found.proposed)
    before = bisect.bisect(bundle, graph=GRAPH, most_trials=1)
    assert before.broken is not None
    assert bisect.bisect(bundle, graph=GRAPH, recipe=tmp_path / "recipe.json").broken is None


@pytest.mark.slow
def test_the_other_graphs_of_a_recipe_stay_as_they_are(overflowing: tuple[Path, str], feeds: Path) -> None:
    written, before = audit.audit(overflowing[0], graphs=(GRAPH,), feeds=feeds).recipe, built_in()
    assert {**written.graphs, GRAPH: None} == {**before.graphs, GRAPH: None}


@pytest.mark.slow
def test_a_planted_nan_is_named_and_no_recipe_is_written(
    poisoned: tuple[Path, str], feeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, blamed = poisoned
    target = tmp_path / "recipe.json"
    arguments = ["audit", str(bundle), "--graph", GRAPH, "--feeds", str(feeds), "-o", str(target)]
    assert main([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert not document["passed"]
    assert document["recipe"] is None
    assert document["graphs"][0]["broken"][0]["node"] == blamed
    assert blamed in err
    assert not target.exists()
    assert main(arguments) == 1
    assert blamed in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.02, 50.0])
def test_a_planted_bad_range_is_named(feeds: Path, tmp_path: Path, factor: float) -> None:
    sound = eight_bit_recipe_of(GRAPH)
    quantized = sound.graphs[GRAPH].quantized
    assert quantized is not None
    tensor = sorted(quantized.ranges)[3]
    ranges = {**quantized.ranges, tensor: quantized.ranges[tensor] * factor}
    wrong = dataclasses.replace(sound.graphs[GRAPH], quantized=dataclasses.replace(quantized, ranges=ranges))
    path = tmp_path / "int8.json"
    path.write_text(dataclasses.replace(sound, graphs={**sound.graphs, GRAPH: wrong}).to_text())
    report = audit.audit("mini", recipe=path, graphs=(GRAPH,), feeds=feeds)
    assert [each.tensor for each in report.graphs[0].bad_ranges] == [tensor]
    assert report.failure is not None
    assert tensor in report.failure


@pytest.mark.slow
def test_sound_ranges_pass(feeds: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.json"
    path.write_text(eight_bit_recipe_of(GRAPH).to_text())
    assert audit.audit("mini", recipe=path, graphs=(GRAPH,), feeds=feeds).passed


@pytest.mark.slow
def test_the_table_says_how_much_room_there_is_and_where_the_recipe_lies(
    feeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "recipe.json"
    assert main(["audit", "mini", "--graph", GRAPH, "--feeds", str(feeds), "-o", str(target)]) == 0
    out = capsys.readouterr().out
    assert GRAPH in out
    assert "room" in out
    assert str(target) in "".join(out.split("\n"))
    assert read_recipe(target) == built_in()
    assert main(["audit", "mini", "--graph", GRAPH, "--feeds", str(feeds), "-o", str(target)]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"graphs": ("unet_taps",)}, "name unet"),
        ({"graphs": ("vae_decoder",)}, "choose one of: sd_text"),
        ({"half": "fp64"}, "choose one of: fp16, bf16"),
        ({"feeds": "nowhere"}, "refdiff calibrate"),
        ({"recipe": "nowhere.json"}, "there is no recipe nowhere.json"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        audit.audit("mini", **options)  # type: ignore[arg-type]


def test_a_converted_bundle_is_sent_back_to_its_fp32_one(tmp_path: Path) -> None:
    converted = copy_of(BUNDLE, tmp_path / "fp16")
    edit_manifest(converted, lambda document: document.update(precision="fp16"))
    with pytest.raises(InputError, match="the bundle it was made from"):
        audit.audit(converted)


@pytest.mark.slow
def test_a_recipe_that_names_an_unknown_node_is_refused(feeds: Path, tmp_path: Path) -> None:
    document = built_in().to_json()
    foreign = {"nodes": ["nothing/*"], "because": "a test"}
    document["graphs"][GRAPH]["fp32"] = [*document["graphs"][GRAPH]["fp32"], foreign]
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="nothing"):
        audit.audit("mini", recipe=path, graphs=(GRAPH,), feeds=feeds)


@pytest.mark.slow
def test_a_recipe_of_other_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(dataclasses.replace(built_in(), sources={"unet": "0" * 64}).to_text())
    with pytest.raises(InputError, match="other weights"):
        audit.audit("mini", recipe=path)
