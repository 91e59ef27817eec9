"""`check`: planted faults are found and named wherever a person or a script looks."""

import dataclasses
import functools
import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.progress import silent
from refdiff.verification.tables import check_page

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.cli import main
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.parity import Parity
from refdiff.contracts.session import Array
from refdiff.errors import GateError, MissingDependencyError
from refdiff.verification import check, parity
from refdiff.verification.report import Ladder
from refdiff.verification.task_agreement import TaskAgreement
from tests.support.checked_bundles import recorded, squeezed, with_golden
from tests.support.checks import report_on, said_by
from tests.support.damage import copy_of, edit_manifest
from tests.support.planted import nan_in_weight, overflow, planted, scale_times
from tests.support.small_graphs import BUNDLE


@dataclasses.dataclass(frozen=True)
class Failed:
    """A check of a bundle with a planted fault."""

    report: check.CheckReport
    page: str
    graph: str
    node: str


PLANTED = {
    "overflow": ("fp16", "clip_text", overflow("blocks.0/Add_2")),
    "nan": ("fp16", "unet", nan_in_weight("unet.mid_block.resnets.0.conv1/Conv")),
    "range": ("int8", "sd_text", scale_times("layers.0.layer_norm1/LayerNormalization/DQ", 1 / 50)),
}


@pytest.fixture(scope="module")
def failures(fp16: Path, int8: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Failed]:
    """Each fault is checked once, whatever order its tests come in."""
    sources = {"fp16": fp16, "int8": int8}

    @functools.cache
    def check_planted(fault: str) -> Failed:
        source, graph, plant = PLANTED[fault]
        folder = tmp_path_factory.mktemp(fault)
        bundle, node = planted(sources[source], folder / "bundle", graph, plant)
        report = check.check(bundle, dataset=None)
        return Failed(report, check_page(report).to_html(), graph, node)

    return check_planted


@pytest.fixture(params=PLANTED)
def failed(request: pytest.FixtureRequest, failures: Callable[[str], Failed]) -> Failed:
    return failures(request.param)


@pytest.fixture(scope="module")
def three_rungs(fp16: Path, int8: Path, feeds: Path) -> check.CheckReport:
    return check.check(int8, against=[fp16], feeds=feeds, dataset=None)


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound fp32 bundle whose record of one graph is not what the graph computes."""

    def drift(arrays: dict[str, Array]) -> None:
        arrays["clip_text/out/vector"] = arrays["clip_text/out/vector"] * np.float32(1.01)

    return with_golden(BUNDLE, tmp_path_factory.mktemp("drifted") / "bundle", drift)


@pytest.mark.slow
def test_a_planted_fault_fails_its_graph_and_no_other(failed: Failed) -> None:
    assert not failed.report.passed
    graphs = [verdict for verdict in failed.report.verdicts if verdict not in failed.report.answer]
    assert {verdict.name.split()[0] for verdict in graphs if not verdict.passed} == {failed.graph}
    found = failed.report.ladder.first_failed
    assert found is not None
    assert (found[0], found[1].graph) == (failed.report.ladder.judged, failed.graph)


@pytest.mark.slow
def test_the_document_names_graph_and_node(failed: Failed, monkeypatch, capsys) -> None:
    code, out, _ = said_by(failed.report, monkeypatch, capsys, "--json")
    document = json.loads(out)
    fault = document["ladder"]["first_fault"]
    assert code == 1
    assert document["passed"] is False
    assert document["ladder"]["first_failed"]["graph"] == failed.graph
    assert (fault["graph"], fault["node"]) == (failed.graph, failed.node)
    assert fault["precision"] == document["precision"]
    assert fault["compared_with"] == "fp32"


@pytest.mark.slow
def test_the_table_names_graph_and_node(failed: Failed, monkeypatch, capsys) -> None:
    code, out, _ = said_by(failed.report, monkeypatch, capsys)
    said = squeezed(out)
    assert code == 1
    assert f"First graph outside its tolerance: {failed.graph} (" in said
    assert f"First divergence: {failed.report.precision} {failed.graph}: node {failed.node} (" in said
    assert re.search(r"FAILED \d+ of \d+ gates\.$", said)


@pytest.mark.slow
def test_the_error_is_one_line_and_names_graph_and_node(failed: Failed, monkeypatch, capsys) -> None:
    code, _, err = said_by(failed.report, monkeypatch, capsys)
    assert code == 1
    (err,) = [line for line in err.splitlines() if not line.startswith("back-end ")]
    assert err.startswith("error: ")
    assert f"gates failed: {failed.graph} " in err
    assert f"First divergence: {failed.report.precision} {failed.graph}: node {failed.node} (" in err
    with pytest.raises(GateError, match="First divergence: "):
        failed.report.require()


@pytest.mark.slow
def test_the_page_names_graph_and_node(failed: Failed) -> None:
    assert "<strong>FAILED</strong>" in failed.page
    assert "<h2>Where it breaks</h2>" in failed.page
    assert f'<td class="wrap">{failed.graph}</td>' in failed.page
    assert f'<td class="wrap">{html.escape(failed.node)} (' in failed.page
    assert "<script" not in failed.page


@pytest.mark.slow
def test_a_failing_check_ends_with_one_and_replaces_its_report_where_it_may(
    drifted: Path, tmp_path: Path, capsys
) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    command = ["check", str(drifted), "--golden-only", "--json", "--report", str(page), "--overwrite"]
    assert main(command) == 1
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert document["ladder"]["first_failed"] == {
        "precision": "fp32",
        "graph": "clip_text",
        "output": "vector",
    }
    assert f"report: {page}\nerror: 1 of 22 gates failed: clip_text " in streams.err
    assert "<strong>FAILED</strong>" in page.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.slow
def test_a_record_that_is_wrong_is_distinguished_from_a_graph_that_is(
    drifted: Path, monkeypatch, capsys
) -> None:
    report = check.check(drifted, dataset=None)
    document = report.to_json()["ladder"]
    assert document["first_fault"] is None
    assert document["first_fault_not_run"].startswith(
        "all its tensors are finite, and there is no more exact"
    )
    _, out, err = said_by(report, monkeypatch, capsys)
    assert "NOT RUN: naming the node: all its tensors are finite" in squeezed(out)
    assert "First divergence" not in err
    assert "NOT RUN: naming the node: all its tensors are finite" in check_page(report).to_html()


@pytest.mark.slow
def test_without_the_package_that_looks_inside_the_graph_is_still_named(
    drifted: Path, monkeypatch, capsys
) -> None:
    def without(*rest: object) -> None:
        raise MissingDependencyError("the search for the node that breaks needs onnx_ir")

    runs = parity.plan_runs(find_bundle(drifted), (), "auto")
    ladder = parity.compare_precisions(runs, None, threads=None, progress=silent, search=without)
    report = dataclasses.replace(report_on({"mask_iou": [1.0] * 8}), ladder=ladder)
    assert report.ladder.divergence_not_found == "the search for the node that breaks needs onnx_ir"
    _, out, _ = said_by(report, monkeypatch, capsys)
    assert "First graph outside its tolerance: clip_text (vector)" in squeezed(out)


@pytest.mark.slow
def test_the_ladder_goes_from_fp32_over_fp16_to_int8(three_rungs: check.CheckReport) -> None:
    assert three_rungs.passed, three_rungs.failure
    rungs = three_rungs.ladder.results
    assert [each.precision for each in rungs] == ["fp32", "fp16", "int8"]
    assert [each.backend for each in rungs] == ["ort-cpu", "ort-rounded", "ort-rounded"]
    assert three_rungs.backend == "ort-rounded"
    for each in rungs:
        graphs = list(dict.fromkeys(output.graph for output in each.outputs))
        assert graphs == list(GRAPHS)
    first, half, eight = (
        {(output.graph, output.output): output for output in each.outputs} for each in rungs
    )
    assert all(output.before is None for output in first.values())
    key = ("sd_text", "context")
    assert first[key].torch.error < half[key].torch.error < eight[key].torch.error
    assert half[key].before is not None
    assert half[key].before.error == pytest.approx(half[key].torch.error, rel=0.05)


@pytest.mark.slow
def test_a_graph_that_stayed_in_fp16_is_judged_by_the_tolerance_of_fp16(
    three_rungs: check.CheckReport, monkeypatch, capsys
) -> None:
    limits = {verdict.name: verdict.limit for verdict in three_rungs.ladder.judged.error_verdicts()}
    assert (limits["sd_text"], limits["clip_text"]) == (0.1, 0.005)
    precisions = {output.graph: output.precision for output in three_rungs.ladder.judged.outputs}
    assert precisions == {**dict.fromkeys(GRAPHS, "fp16"), "sd_text": "int8"}
    _, out, _ = said_by(three_rungs, monkeypatch, capsys)
    assert "clip_text (fp16)" in out
    assert "sd_text (" not in out
    assert "<td>clip_text (fp16)</td>" in check_page(three_rungs).to_html()


@pytest.mark.slow
def test_recorded_feeds_are_compared_with_the_first_rung(
    three_rungs: check.CheckReport, monkeypatch, capsys
) -> None:
    for each in three_rungs.ladder.results:
        measured = {output.graph for output in each.outputs if output.feeds is not None}
        assert measured == (set() if each.precision == "fp32" else {"sd_text", "clip_image"})
    assert [verdict.name for verdict in three_rungs.ladder.judged.feeds_verdicts()] == [
        "sd_text on recorded feeds",
        "sd_text correlation on recorded feeds",
        "clip_image on recorded feeds",
        "clip_image correlation on recorded feeds",
    ]
    code, out, _ = said_by(three_rungs, monkeypatch, capsys, "--json")
    assert code == 0
    assert [each["name"] for each in json.loads(out)["feeds"]] == [
        each.name for each in three_rungs.ladder.judged.feeds_verdicts()
    ]
    _, out, _ = said_by(three_rungs, monkeypatch, capsys)
    assert "on feeds" in out
    assert "On recorded feeds" in check_page(three_rungs).to_html()


@pytest.mark.slow
def test_a_fault_that_only_recorded_feeds_show_is_found_on_them(fp16: Path, tmp_path: Path) -> None:
    feeds = open_bundle(BUNDLE, verify="size").golden()["vae_encoder"][0]
    bright = {"image": feeds["image"] * np.float32(2**14)}
    folder = recorded(tmp_path / "feeds", {"vae_encoder": bright})
    report = check.check(fp16, feeds=folder, dataset=None)
    judged = report.ladder.judged
    assert all(verdict.passed for verdict in (*judged.error_verdicts(), *judged.correlation_verdicts()))
    assert [verdict.name for verdict in judged.feeds_verdicts() if not verdict.passed] == [
        "vae_encoder on recorded feeds",
        "vae_encoder correlation on recorded feeds",
    ]
    fault = report.ladder.divergence
    assert fault is not None
    assert (fault.graph, fault.cause) == ("vae_encoder", "not finite")
    assert fault.result.difference.largest_expected is not None
    assert fault.result.difference.largest_expected > 65504


@pytest.mark.slow
def test_a_more_exact_bundle_that_fails_is_said_and_is_no_failure_of_the_bundle(
    three_rungs: check.CheckReport, failed: Failed, monkeypatch, capsys
) -> None:
    first, _, judged = three_rungs.ladder.results
    ladder = Ladder(
        results=(first, failed.report.ladder.judged, judged), divergence=failed.report.ladder.divergence
    )
    report = dataclasses.replace(three_rungs, ladder=ladder)
    assert report.passed
    assert report.failure is None
    code, out, _ = said_by(report, monkeypatch, capsys)
    assert code == 0
    assert f"First divergence: {failed.report.precision} {failed.graph}: node {failed.node}" in squeezed(out)
    for laid_out in (squeezed(out), check_page(report).to_html()):
        assert "A more exact bundle it was compared with did not." in laid_out


@pytest.mark.slow
def test_a_question_without_an_answer_is_a_failure_even_where_all_gates_pass(
    three_rungs: check.CheckReport, monkeypatch, capsys
) -> None:
    report = dataclasses.replace(
        three_rungs, task=TaskAgreement(unanswered="“a mug” on scene 3 in variant edge: NaN")
    )
    assert not report.passed
    code, out, err = said_by(report, monkeypatch, capsys, "--json")
    assert code == 1
    assert json.loads(out)["reference_unanswered"] == report.task.unanswered
    assert err.endswith(f"error: the bundle does not answer {report.task.unanswered}\n")


@pytest.mark.slow
def test_a_report_that_failed_can_be_raised() -> None:
    report = check.check(BUNDLE, dataset=None)
    report.require()
    judged = report.ladder.judged
    assert [verdict.name for verdict in judged.error_verdicts()] == list(GRAPHS)
    first, *rest = judged.outputs
    broken = dataclasses.replace(first, torch=Parity(float("inf"), 1.0))
    ladder = Ladder(results=(dataclasses.replace(judged, outputs=(broken, *rest)),))
    failed = dataclasses.replace(report, ladder=ladder)
    with pytest.raises(GateError, match="gates failed: sd_text inf"):
        failed.require()


@pytest.mark.slow
def test_a_changed_mean_that_was_hashed_again_fails_on_the_golden_answer(tmp_path: Path) -> None:
    bundle = copy_of(BUNDLE, tmp_path / "b")
    edit_manifest(bundle, lambda d: d["spec"]["sam"].update(pixel_mean=[123.675, 16.28, 103.53]))
    report = check.check(bundle, dataset=None)
    failed = [verdict.name for verdict in report.verdicts if not verdict.passed]
    assert "golden answer mask_iou" in failed
    assert all(name.startswith("golden answer") for name in failed)
    assert "golden answer mask_iou" in check_page(report).to_html()
