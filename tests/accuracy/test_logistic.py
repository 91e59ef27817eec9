"""The logistic regression and the scores of a score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.accuracy.logistic import auroc, calibration_error, coverage, cross_validate, solve


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(pairs):
    values = np.array([float(value) for value, _ in pairs])
    right = np.array([flag for _, flag in pairs])
    if right.all() or not right.any():
        assert auroc(values, right) == 0.5
        return
    above = [(a > b) + (a == b) / 2 for a in values[right] for b in values[~right]]
    assert auroc(values, right) == pytest.approx(np.mean(above))


def test_a_fit_recovers_weights_and_is_calibrated_on_unseen_samples():
    rng = np.random.default_rng(0)
    design = rng.normal(size=(4000, 3))
    truth = np.array([0.5, 2.0, -1.0, 0.0])
    right = rng.random(4000) < 1 / (1 + np.exp(-(truth[0] + design @ truth[1:])))
    assert solve(design, right, 1.0) == pytest.approx(truth, abs=0.2)
    probability = cross_validate(design, right, np.arange(4000) % 5, 1.0)
    assert calibration_error(probability, right) < 0.03
    assert auroc(probability, right) > 0.85


def test_a_penalty_shrinks_the_weights_and_leaves_the_bias_free():
    rng = np.random.default_rng(1)
    design = rng.normal(size=(500, 2))
    right = rng.random(500) < 0.9
    strong = solve(design, right, 1e6)
    assert np.abs(strong[1:]).max() < 1e-2
    assert 1 / (1 + np.exp(-strong[0])) == pytest.approx(right.mean(), abs=1e-3)


def test_coverage_counts_the_right_answers_above_a_precise_threshold():
    values = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    right = np.array([True, True, False, True, True])
    assert coverage(values, right, precision=1.0) == 0.5
    assert coverage(values, right, precision=0.75) == 1.0
    assert coverage(values, np.zeros(5, bool), precision=0.5) == 0.0


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    probability = np.array([0.05, 0.05, 0.95, 0.95])
    right = np.array([False, False, True, False])
    assert calibration_error(probability, right) == pytest.approx(0.5 * 0.05 + 0.5 * 0.45)
