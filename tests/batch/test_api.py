"""The verbs as functions."""

from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff.batch import prediction
from refdiff.batch.contact_sheet import SheetEntry, contact_sheet
from refdiff.contracts import inspection
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.inspection import BUILT_IN
from refdiff.data.synthetic import DEMO_SEEDS, HELD_OUT_FROM, question, questions
from refdiff.errors import BundleError, GateError, InputError
from refdiff.evaluation import evaluate
from refdiff.miniature import evaluate as evaluate_command
from refdiff.miniature.scenes import render_scene
from refdiff.verification import check


def test_the_daily_use_is_load_encode_segment(tiny_bundle: Path) -> None:
    with refdiff.load(tiny_bundle) as segmenter:
        scene = segmenter.encode(render_scene(HELD_OUT_FROM).image)
        first, second = (segmenter.segment(scene, phrase) for phrase in ("the left block", "the ball"))
    assert first.mask.shape == second.mask.shape == scene.image.shape[:2]
    assert first.heat is not None
    assert len(first.candidates) == len(first.scores.total)


def test_segment_answers_as_load_does(tiny_bundle: Path) -> None:
    image = render_scene(HELD_OUT_FROM).image
    answer = prediction.segment(tiny_bundle, image, "the left block", variant="official", seed=3)
    with refdiff.load(tiny_bundle, variant="official", seed=3) as segmenter:
        result = segmenter.segment(segmenter.encode(image), "the left block")
    assert np.array_equal(answer.result.mask, result.mask)
    assert answer.result.score == result.score
    assert answer.backend == "ort-cpu"


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_bundle_is_named_mini(
    name: str, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    monkeypatch.setattr("refdiff.contracts.inspection._built_in_path", lambda: tiny_bundle)
    assert inspection.inspect(name).path == tiny_bundle


def test_an_installation_without_the_built_in_bundle_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("refdiff.contracts.inspection.resources.files", lambda package: tmp_path)
    with pytest.raises(BundleError, match="built-in bundle is not in this installation"):
        inspection.inspect("mini")


def test_a_report_that_failed_can_be_raised(tiny_bundle: Path) -> None:
    report = check.check(tiny_bundle, golden_only=True)
    report.require()
    assert [verdict.name for verdict in report.golden] == list(GRAPHS)
    with pytest.raises(GateError, match="gates failed: sd_text inf"):
        _with_error(report, float("inf")).require()


def _with_error(report: check.CheckReport, value: float) -> check.CheckReport:
    from dataclasses import replace

    first, *rest = report.golden
    return replace(report, golden=(replace(first, value=value), *rest))


@pytest.mark.needs_torch
def test_check_compares_runtime_and_reference_where_there_is_one(tiny_bundle: Path) -> None:
    from tests.support.calm_stack import calm_stack

    report = check.check(tiny_bundle, count=1, stack=calm_stack())
    assert report.not_run is None
    assert list(report.reference) == ["official", "edge"]
    measured = {verdict.name for verdict in report.reference["edge"]}
    assert measured >= {"heat_correlation", "candidate_recall", "mask_iou", "argmax_agreement"}
    assert report.passed, report.failure


def test_check_refuses_no_scenes(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="got 0 scenes"):
        check.check(tiny_bundle, count=0)


def test_a_question_is_the_same_every_time_and_its_truth_is_one_object() -> None:
    first, again = question(1_000_009), question(1_000_009)
    assert first is not None
    assert again is not None
    assert first.phrase == again.phrase == "the bowl behind the blue ball"
    assert np.array_equal(first.truth, again.truth)
    assert any(np.array_equal(first.truth, mask) for mask in render_scene(1_000_009).masks)


def test_the_demo_s_scenes_are_held_out_and_not_all_square() -> None:
    asked = list(questions(DEMO_SEEDS))
    assert len(asked) == len(DEMO_SEEDS)
    assert min(DEMO_SEEDS) >= HELD_OUT_FROM
    shapes = {each.image.shape[0] - each.image.shape[1] for each in asked}
    assert min(shapes) < 0 < max(shapes)


def test_evaluate_measures_the_runtime(tiny_bundle: Path) -> None:
    lines: list[str] = []
    report = evaluate.evaluate(count=2, mode="gen", bundle=tiny_bundle, progress=lines.append)
    document = report.to_json()
    assert document["count"] == 2
    assert {"miou", "oiou", "pr@0.5", "pr@0.9", "oracle_miou", "by_cue", "seconds"} <= set(document)
    assert document["oracle_miou"] >= document["miou"] >= 0
    assert lines[0].startswith("back-end ort-")
    assert lines[1:] == [f"2/2 scenes, mIoU {document['miou']:.3f}"]


@pytest.mark.slow
def test_evaluate_measures_the_same_in_two_processes(tiny_bundle: Path) -> None:
    one, two = (evaluate.evaluate(count=3, mode="gen", bundle=tiny_bundle, jobs=jobs) for jobs in (1, 2))
    assert one.metrics == two.metrics


def test_the_evaluation_s_command_prints_one_document_or_a_line(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_command.main(["--count", "1", "--mode", "gen", "--bundle", str(tiny_bundle)]) == 0
    assert "oracle_miou" in capsys.readouterr().out
    assert evaluate_command.main(["--count", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: got count 0")


def test_an_unknown_computation_is_refused() -> None:
    with pytest.raises(InputError, match="unknown back-end 'abacus'; choose one of: torch, onnx"):
        evaluate.evaluate(backend="abacus")


def test_a_sheet_shows_every_entry_and_survives_a_mode_without_a_map(tiny_bundle: Path) -> None:
    with refdiff.load(tiny_bundle, mode="disc+seg") as segmenter:
        image = render_scene(HELD_OUT_FROM).image
        result = segmenter.segment(segmenter.encode(image), "the left block")
    entries = [SheetEntry(image=image, result=result, iou=0.5)] * 3
    one, three = contact_sheet(entries[:1]), contact_sheet(entries)
    assert three.shape[0] > one.shape[0]
    assert three.shape[1] > one.shape[1]
