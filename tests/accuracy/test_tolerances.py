import dataclasses
import json
from pathlib import Path

import pytest

from refdiff.accuracy.tolerances import Verdict, judge, judge_samples, precisions
from refdiff.contracts.graphs import GRAPHS
from refdiff.errors import InputError
from refdiff.verification.task_agreement import Agreement


def test_every_precision_has_a_gate_for_every_graph_and_every_part_of_agreement():
    parts = [field.name for field in dataclasses.fields(Agreement)]
    for precision in precisions():
        assert len(judge("graph_error", precision, dict.fromkeys(GRAPHS, 0.0))) == len(GRAPHS)
        assert len(judge("agreement", precision, dict.fromkeys(parts, 1.0))) == len(parts)


def test_the_issue_s_thresholds_are_the_committed_ones():
    limits = {v.name: v for v in judge("agreement", "fp32", {"argmax_agreement": 1.0, "mask_iou": 1.0})}
    assert (limits["argmax_agreement"].limit, limits["argmax_agreement"].bound) == (0.99, "at_least")
    assert limits["mask_iou"].limit == 0.995


def test_a_value_on_its_limit_passes_and_beyond_it_fails():
    assert Verdict(name="a", value=0.99, bound="at_least", limit=0.99).passed
    assert not Verdict(name="a", value=0.98, bound="at_least", limit=0.99).passed
    assert not Verdict(name="a", value=2e-3, bound="at_most", limit=1e-3).passed


@pytest.mark.parametrize("bound", ["at_least", "at_most"])
def test_what_is_not_a_number_never_passes(bound):
    assert not Verdict(name="a", value=float("nan"), bound=bound, limit=0.5).passed


def test_an_infinite_error_is_null_in_json():
    verdict = Verdict(name="unet", value=float("inf"), bound="at_most", limit=1e-3)
    assert verdict.to_json() == {
        "name": "unet",
        "value": None,
        "at_most": 1e-3,
        "passed": False,
        "verdict": "failed",
    }


def test_a_precision_without_gates_is_refused_by_name():
    with pytest.raises(InputError, match="no gates for precision 'int2', only for: fp32"):
        judge("graph_error", "int2", {"unet": 0.0})


def test_a_value_without_a_gate_is_refused_by_name():
    with pytest.raises(InputError, match="no gate for graph_error of 'vae_decoder'"):
        judge("graph_error", "fp32", {"vae_decoder": 0.0})


def outcomes(precision: str, samples: dict[str, list[float]]) -> dict[str, str]:
    return {verdict.name: verdict.outcome for verdict in judge_samples(precision, samples)}


def test_every_precision_fails_on_eight_answers_that_have_nothing_in_common():
    for precision in precisions():
        found = outcomes(precision, {"argmax_agreement": [0.0] * 8, "mask_iou": [0.02] * 7 + [0.4]})
        assert set(found.values()) == {"failed"}, precision


def test_every_precision_fails_if_half_of_eight_masks_are_lost():
    for precision in precisions():
        lost = [1.0, 0.0] * 4
        found = outcomes(precision, {"argmax_agreement": lost, "mask_iou": lost, "candidate_recall": lost})
        assert set(found.values()) == {"failed"}, precision


@pytest.mark.slow
def test_one_differing_answer_of_eight_is_too_little_to_fail_any_precision():
    one = [1.0] * 7 + [0.0]
    for precision in precisions():
        found = outcomes(precision, {"argmax_agreement": one, "mask_iou": one})
        assert set(found.values()) == {"undecided"}, precision


def test_as_many_samples_as_are_named_decide_and_half_of_them_do_not():
    (verdict,) = judge_samples("int8", {"argmax_agreement": [1.0] * 7 + [0.0]})
    assert verdict.sampling is not None
    needed = verdict.sampling.needed
    assert needed is not None
    assert 8 < needed < 100
    for times, expected in ((needed // 8 + 1, "failed"), (needed // 16, "undecided")):
        (again,) = judge_samples("int8", {"argmax_agreement": ([0.0] + [1.0] * 7) * times})
        assert again.outcome == expected, times


def test_a_mean_just_below_its_limit_names_no_number_of_samples():
    (verdict,) = judge_samples("int8", {"mask_iou": [1.0] * 7 + [0.5999]})
    assert verdict.outcome == "undecided"
    assert verdict.to_json()["samples_needed"] is None


def test_a_mean_on_its_limit_passes_whatever_its_interval():
    (verdict,) = judge_samples("bf16", {"argmax_agreement": [1.0] * 9 + [0.0]})
    assert verdict.outcome == "passed"
    assert verdict.to_json()["samples_needed"] is None


def test_samples_that_are_not_numbers_fail():
    assert outcomes("fp32", {"heat_correlation": [float("nan"), 1.0]}) == {"heat_correlation": "failed"}


def test_the_document_holds_the_interval_and_the_samples():
    (verdict,) = judge_samples("int8", {"mask_iou": [1.0] * 7 + [0.0]})
    document = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert (document["passed"], document["verdict"], document["samples"]) == (False, "undecided", 8)
    assert document["interval_95"] == pytest.approx([0.4735, 0.9968], abs=0.004)
    assert document["samples_needed"] > 8
    assert document["values"] == [1.0] * 7 + [0.0]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
@pytest.mark.parametrize("variant", ["official", "edge"])
def test_no_eight_scenes_fail_a_shipped_recipe(precision: str, variant: str):
    recorded = json.loads(Path(__file__).with_name("agreements.json").read_text(encoding="utf-8"))
    parts: dict[str, list[float | None]] = recorded[precision][variant]
    judged = 0
    for start in range(0, len(parts["mask_iou"]), 8):
        eight = {
            name: [value for value in values[start : start + 8] if value is not None]
            for name, values in parts.items()
        }
        assert "failed" not in outcomes(precision, eight).values(), start
        judged += 1
    assert judged == 8
