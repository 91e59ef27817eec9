import dataclasses

import pytest

from refdiff.accuracy.agreement import Agreement
from refdiff.accuracy.tolerances import Verdict, judge, precisions
from refdiff.contracts.graphs import GRAPHS
from refdiff.errors import InputError


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
    assert verdict.to_json() == {"name": "unet", "value": None, "at_most": 1e-3, "passed": False}


def test_a_precision_without_gates_is_refused_by_name():
    with pytest.raises(InputError, match="no gates for precision 'int2', only for: fp32"):
        judge("graph_error", "int2", {"unet": 0.0})


def test_a_value_without_a_gate_is_refused_by_name():
    with pytest.raises(InputError, match="no gate for graph_error of 'vae_decoder'"):
        judge("graph_error", "fp32", {"vae_decoder": 0.0})
