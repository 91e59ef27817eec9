"""`check` with the torch reference: how far the answers of a bundle may be from it."""

import contextlib
import json
from pathlib import Path

import pytest

from refdiff.verification.tables import check_page

pytestmark = pytest.mark.needs_torch
pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.contracts.bundle import open_bundle
from refdiff.engines.factory import open_sessions
from refdiff.verification import check
from refdiff.verification.task_agreement import compare_with_reference, reference_of
from tests.support.checked_bundles import EDGE, ONE_SCENE, squeezed
from tests.support.checks import said_by
from tests.support.planted import nan_in_weight, planted, result_times
from tests.support.small_graphs import BUNDLE


def test_the_reference_s_own_noise_is_measured_and_shown_with_the_bundle_s(
    tiny_bundle: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from tests.support.calm_stack import calm_stack

    report = check.check(tiny_bundle, dataset=ONE_SCENE, options=EDGE, stack=calm_stack())
    assert report.passed, report.failure
    assert report.task.count == 1
    floor = report.task.noise_floor["edge"]
    assert list(floor) == [verdict.name for verdict in report.task.verdicts["edge"]]
    assert 0 < floor["heat_correlation"] < 0.99, "another seed is another draw"
    assert "edge heat_correlation" in {verdict.name for verdict in report.verdicts}
    _, out, _ = said_by(report, monkeypatch, capsys, "--json")
    assert json.loads(out)["noise_floor"] == {"edge": floor}
    _, out, _ = said_by(report, monkeypatch, capsys)
    assert f"{floor['heat_correlation']:.4f}" in out
    assert "Noise floor: the reference's agreement with itself under another seed; it is not a gate." in out
    written = check_page(report).to_html()
    assert f'<td class="number">{floor["heat_correlation"]:.4f}</td>' in written
    assert "<h2>Worst cases</h2>" in written
    assert written.count("<img ") == 5


def test_a_bundle_that_cannot_answer_fails_and_says_which_question(
    tiny_bundle: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from tests.support.calm_stack import calm_stack

    nan = nan_in_weight("layers.0.self_attn.q_proj/MatMul")
    bundle, node = planted(tiny_bundle, tmp_path / "bundle", "sd_text", nan)
    report = check.check(bundle, dataset=ONE_SCENE, options=EDGE, stack=calm_stack())
    assert report.task.unanswered is not None
    assert (
        "in variant edge: graph sd_text returned context with values that are not fin"
        in report.task.unanswered
    )
    assert "refdiff check" not in report.task.unanswered
    assert (report.task.verdicts, report.task.noise_floor, report.task.worst) == ({}, {}, ())
    code, out, err = said_by(report, monkeypatch, capsys)
    assert code == 1
    assert f"The bundle does not answer {report.task.unanswered}." in squeezed(out)
    assert f"node {node} (MatMul) is the first whose result is not finite" in err
    assert "does not answer" in check_page(report).to_html()


@pytest.mark.slow
def test_masks_that_a_conversion_destroyed_fail_on_the_default_scenes(tmp_path: Path) -> None:
    folder, _ = planted(BUNDLE, tmp_path / "bundle", "sam_masks", result_times("graph/Transpose_1", -1.0))
    bundle, scenes = open_bundle(folder), tuple(check.CHECKED_SCENES)[:3]
    stack, _ = reference_of(bundle, None)
    assert stack is not None
    variants = {"edge": EDGE[0].pipeline_options(bundle.spec)}
    with contextlib.closing(open_sessions(bundle, backend="ort-cpu")) as sessions:
        task = compare_with_reference(bundle, sessions, stack, variants, scenes, lambda line: None)
    found = {verdict.name: verdict for verdict in task.verdicts["edge"]}
    assert task.count == 3
    assert found["mask_iou"].value < 0.2
    for part in ("mask_iou", "argmax_agreement", "candidate_recall"):
        assert found[part].outcome == "failed", part


def test_check_compares_runtime_and_reference_where_there_is_one(tiny_bundle: Path) -> None:
    from tests.support.calm_stack import calm_stack

    report = check.check(tiny_bundle, dataset=ONE_SCENE, stack=calm_stack())
    assert report.not_run is None
    assert list(report.task.verdicts) == ["official", "edge"]
    measured = {verdict.name for verdict in report.task.verdicts["edge"]}
    assert measured >= {"heat_correlation", "candidate_recall", "mask_iou", "argmax_agreement"}
    assert report.passed, report.failure
