"""The verb `bisect`: planted nodes are found, nothing else is kept exact, and the recipe fixes the graph."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

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
