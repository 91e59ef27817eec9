import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refdiff.accuracy.metrics import (
    PRECISION_LEVELS,
    Overlap,
    bounded_mean_interval,
    iou,
    ious_with,
    metrics,
    overlap,
    pairwise_iou,
)

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 5), st.just(4), st.just(7)))


def box(x0: int, x1: int) -> np.ndarray:
    """Columns x0..x1 (exclusive) of a wide image."""
    mask = np.zeros((4, 10), dtype=np.bool_)
    mask[:, x0:x1] = True
    return mask


def sentence(intersection: int, union: int, best: float = 1.0) -> Overlap:
    return Overlap(intersection_px=intersection, union_px=union, best_iou=best)


def test_iou_is_shared_over_covered():
    assert iou(box(0, 4), box(2, 6)) == pytest.approx(2 / 6)


def test_two_empty_masks_are_the_same_mask():
    empty = box(0, 0)
    assert iou(empty, empty) == 1.0
    assert pairwise_iou(empty[None], empty[None])[0, 0] == 1.0


@pytest.mark.slow
@given(MASKS, MASKS)
def test_pairwise_iou_is_iou_of_every_pair(rows: np.ndarray, columns: np.ndarray):
    table = pairwise_iou(rows, columns)
    expected = [[iou(row, column) for column in columns] for row in rows]
    assert np.allclose(table, expected)


def test_miou_counts_sentences_and_oiou_counts_pixels():
    measured = metrics([sentence(10, 10), sentence(0, 90)])
    assert measured.miou == pytest.approx(0.5)
    assert measured.oiou == pytest.approx(0.1)
    assert measured.count == 2


def test_precision_is_strictly_above_its_level():
    measured = metrics([sentence(5, 10), sentence(51, 100), sentence(95, 100)])
    assert list(measured.precision_at) == list(PRECISION_LEVELS)
    assert measured.precision_at[0.5] == pytest.approx(2 / 3)
    assert measured.precision_at[0.9] == pytest.approx(1 / 3)


def test_the_oracle_is_the_best_candidate_whatever_was_chosen():
    truth = box(2, 6)
    found = overlap(box(0, 0), truth, np.stack([box(0, 4), box(2, 7)]))
    assert found.best_iou == pytest.approx(4 / 5)
    assert found.iou == 0.0


def test_no_candidate_is_an_oracle_of_nothing():
    assert overlap(box(0, 0), box(2, 6), np.zeros((0, 4, 10), dtype=np.bool_)).best_iou == 0.0


def test_no_sentences_give_zeros_not_a_division():
    assert metrics([]).miou == metrics([]).oiou == metrics([]).oracle_miou == 0.0


@pytest.mark.parametrize(
    ("ones", "count", "expected"),
    [
        (0, 8, (0.0, 0.3694)),
        (5, 8, (0.2449, 0.9148)),
        (7, 8, (0.4735, 0.9968)),
        (8, 8, (0.6306, 1.0)),
        (49, 50, (0.8935, 0.9995)),
    ],
)
def test_the_interval_of_a_share_is_that_of_clopper_and_pearson(ones, count, expected):
    interval = bounded_mean_interval([1.0] * ones + [0.0] * (count - ones))
    assert interval == pytest.approx(expected, abs=0.004)


@pytest.mark.slow
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_interval_contains_the_mean_and_stays_in_range(values: list[float]):
    low, high = bounded_mean_interval(values)
    assert 0 <= low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= high <= 1


def test_equal_values_do_not_make_few_samples_certain():
    assert bounded_mean_interval([0.9])[1] > 0.99
    assert bounded_mean_interval([0.9] * 8)[1] == pytest.approx(0.937, abs=0.003)
    assert bounded_mean_interval([0.9] * 8, lowest=-1)[0] < bounded_mean_interval([0.9] * 8)[0]


def test_samples_of_the_same_kind_narrow_the_interval_as_if_they_were_there():
    few = [1.0, 0.5, 0.9, 0.2]
    assert bounded_mean_interval(few, count=40) == pytest.approx(bounded_mean_interval(few * 10), abs=1e-9)
    assert bounded_mean_interval(few, count=40)[1] < bounded_mean_interval(few)[1]


def test_the_ious_with_a_truth_are_those_of_whole_masks():
    rng = np.random.default_rng(0)
    masks = rng.random((5, 9, 11)) < 0.4
    masks[3] = False
    truth = np.zeros((9, 11), np.bool_)
    truth[2:6, 3:9] = rng.random((4, 6)) < 0.7
    assert ious_with(truth, masks) == tuple(iou(mask, truth) for mask in masks)
