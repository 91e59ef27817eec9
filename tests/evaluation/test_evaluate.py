"""`evaluate` on rendered scenes, and its verb."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refdiff.cli import main
from refdiff.contracts.inspection import inspect
from refdiff.contracts.options import RunOptions
from refdiff.data.sample import Sample, SampleList
from refdiff.data.synthetic import RenderedScenes
from refdiff.errors import InputError
from refdiff.evaluation.evaluate import evaluate

GEN = RunOptions(mode="gen")


def test_evaluate_measures_the_runtime(mini_bundle: Path) -> None:
    lines: list[str] = []
    report = evaluate(mini_bundle, RenderedScenes(count=2), options=GEN, progress=lines.append)
    document = report.to_json()
    assert document["count"] == 2
    assert document["seed"] == 1_000_000
    assert {"miou", "oiou", "pr@0.5", "pr@0.9", "oracle_miou", "by_cue", "seconds"} <= set(document)
    assert document["oracle_miou"] >= document["miou"] >= 0
    assert report.backend is not None
    assert lines == [f"2/2 samples, mIoU {document['miou']:.3f}"]


@pytest.mark.slow
def test_a_run_that_names_its_bundle_by_hash_is_the_same_run(mini_bundle: Path, tmp_path: Path) -> None:
    scenes, folder = RenderedScenes(count=2), tmp_path / "records"
    named = replace(GEN, expect=inspect(mini_bundle).manifest.sha256)
    first = evaluate(mini_bundle, scenes, options=named, output=folder)
    lines: list[str] = []
    again = evaluate(mini_bundle, scenes, options=GEN, output=folder, progress=lines.append)
    assert again.records == first.records
    assert lines == []  # nothing was measured again


@pytest.mark.slow
def test_evaluate_measures_the_same_in_two_processes(tiny_bundle: Path) -> None:
    scenes = RenderedScenes(count=3)
    one, two = (evaluate(tiny_bundle, scenes, options=GEN, jobs=jobs) for jobs in (1, 2))
    assert one.records == two.records


@pytest.mark.slow
def test_the_verb_prints_a_document_that_names_runtime_and_back_end(
    mini_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(mini_bundle), "--count", "1", "--mode", "gen", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runtime"] == "onnx"
    assert document["backend"].startswith("ort-")


def test_the_table_has_a_row_for_all_samples_and_for_each_cue(
    mini_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # wide enough that no cell is folded
    assert main(["eval", str(mini_bundle), "--count", "1", "--mode", "gen"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("onnx, edge, gen: 1 samples")
    assert "oracle" in said
    assert "with kind" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--count", "0"], "got count 0"),
        (["--jobs", "0"], "got 0 processes, expected 1 to"),
        (["--runtime", "abacus"], "unknown runtime 'abacus'; choose one of: torch, onnx"),
        (["--runtime", "torch", "--backend", "ort-cpu"], "not the torch reference"),
        (["--runtime", "torch", "--expect", "0" * 64], "the torch reference opens none; leave --expect out"),
        (["--backend", "abacus"], "abacus"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "mini", *options]) == 2
    assert said in capsys.readouterr().err


def test_the_reference_of_another_model_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="exists for the built-in models only"):
        evaluate(tiny_bundle, RenderedScenes(count=1), runtime="torch")


def test_a_sample_without_a_mask_is_refused(mini_bundle: Path) -> None:
    photo = Sample(id="photo", image=np.zeros((32, 48, 3), np.uint8), phrase="the mug")
    with pytest.raises(InputError, match="photo has no true mask"):
        evaluate(mini_bundle, SampleList((photo,)), options=GEN)
