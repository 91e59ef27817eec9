import dataclasses

import numpy as np
import pytest

from refdiff.contracts.parity import correlation, relative_error
from refdiff.contracts.results import Candidates, Scores
from refdiff.runtime.segmentation import Segmentation
from refdiff.verification.task_agreement import TIE, compare, match_candidates, order_agreement, summarize

SIZE_YX = (6, 20)


def columns(*spans: tuple[int, int]) -> np.ndarray:
    masks = np.zeros((len(spans), *SIZE_YX), dtype=np.bool_)
    for mask, (x0, x1) in zip(masks, spans, strict=True):
        mask[:, x0:x1] = True
    return masks


def answer(masks: np.ndarray, totals: list[float], *, heat: np.ndarray | None = None) -> Segmentation:
    zeros, total = np.zeros(len(masks), np.float32), np.array(totals, np.float32)
    index = int(total.argmax()) if np.isfinite(total).any() else None
    return Segmentation(
        phrase="the mug",
        root="mug",
        mask=np.zeros(SIZE_YX, np.bool_) if index is None else masks[index],
        index=index,
        score=float("-inf") if index is None else float(total[index]),
        scores=Scores(hard=zeros, soft=zeros, generative=zeros, place=zeros, total=total),
        heat=heat,
        candidates=Candidates(
            masks=masks,
            predicted_iou=zeros,
            areas_px=masks.sum(axis=(1, 2), dtype=np.int64),
            boxes_xyxy_px=np.zeros((len(masks), 4), np.int64),
            kept=np.isfinite(total),
        ),
        reason="nothing" if index is None else None,
    )


THREE = columns((0, 5), (5, 10), (10, 20))


def test_an_answer_agrees_with_itself_in_every_part():
    heat = np.linspace(0, 1, 120, dtype=np.float32).reshape(SIZE_YX)
    same = compare(answer(THREE, [0.1, 0.3, 0.2], heat=heat), answer(THREE, [0.1, 0.3, 0.2], heat=heat))
    assert dataclasses.astuple(same) == pytest.approx((1.0,) * 5)


def test_candidates_may_come_in_another_order():
    shuffled = compare(answer(THREE, [0.1, 0.3, 0.2]), answer(THREE[::-1].copy(), [0.2, 0.3, 0.1]))
    assert shuffled.candidate_recall == shuffled.rank_agreement == shuffled.argmax_agreement == 1.0


def test_a_candidate_the_runtime_lost_lowers_the_recall():
    assert compare(answer(THREE, [0.1, 0.3, 0.2]), answer(THREE[:2], [0.1, 0.3])).candidate_recall == (
        pytest.approx(2 / 3)
    )


def test_one_candidate_is_matched_once():
    twice = np.stack([THREE[0], THREE[0]])
    assert compare(answer(twice, [0.1, 0.2]), answer(THREE[:1], [0.1])).candidate_recall == 0.5


def test_another_choice_is_no_argmax_agreement_however_much_it_overlaps():
    both = columns((0, 20), (0, 19))
    part = compare(answer(both, [0.2, 0.1]), answer(both, [0.1, 0.2]))
    assert part.mask_iou == pytest.approx(0.95)
    assert part.argmax_agreement == 0.0


def test_the_same_choice_with_other_edges_is_argmax_agreement_and_the_mask_iou_says_how_far():
    part = compare(answer(columns((0, 20)), [0.1]), answer(columns((0, 19)), [0.1]))
    assert part.mask_iou == pytest.approx(0.95)
    assert part.argmax_agreement == 1.0
    assert compare(answer(columns((0, 20)), [0.1]), answer(columns((0, 17)), [0.1])).argmax_agreement == 0.0


def test_no_match_agrees_with_no_match_only():
    none = answer(THREE, [float("-inf")] * 3)
    assert compare(none, none).argmax_agreement == 1.0
    assert compare(none, answer(THREE, [0.1, 0.3, 0.2])).argmax_agreement == 0.0


def test_the_mode_without_a_map_has_no_heat_correlation():
    part = compare(answer(THREE, [0.1, 0.3, 0.2]), answer(THREE, [0.1, 0.3, 0.2]))
    assert part.heat_correlation is None
    assert "heat_correlation" not in summarize([part])


def test_a_summary_is_the_mean_of_what_there_is():
    good = compare(answer(THREE, [0.1, 0.3, 0.2]), answer(THREE, [0.1, 0.3, 0.2]))
    bad = dataclasses.replace(good, mask_iou=0.0, rank_agreement=None)
    assert summarize([good, bad])["mask_iou"] == 0.5
    assert summarize([good, bad])["rank_agreement"] == 1.0


def test_matching_takes_the_best_pair_first():
    ious = np.array([[0.95, 0.99], [0.0, 0.97]], np.float32)
    assert match_candidates(ious) == [(0, 1)]


def test_a_swapped_pair_is_a_disagreement_and_a_tie_is_not():
    assert order_agreement(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.1, 0.3])) == pytest.approx(2 / 3)
    assert order_agreement(np.array([0.1, 0.1 + TIE / 2]), np.array([0.2, 0.1])) == 1.0
    assert order_agreement(np.array([0.1]), np.array([0.2])) is None


def test_a_flat_map_correlates_with_a_flat_map_alone():
    flat, ramp = np.full(SIZE_YX, 0.5, np.float32), np.arange(120, dtype=np.float32).reshape(SIZE_YX)
    assert correlation(flat, flat) == 1.0
    assert correlation(flat, ramp) == 0.0
    assert correlation(ramp, -ramp) == pytest.approx(-1.0)


def test_the_error_is_relative_to_the_expected_range():
    expected = np.array([0.0, 10.0], np.float32)
    assert relative_error(expected + 0.5, expected) == pytest.approx(0.05)
    assert relative_error(np.full(3, 5.5), np.full(3, 5.0)) == pytest.approx(0.1)
    assert relative_error(np.zeros(0), np.zeros(0)) == 0.0


@pytest.mark.parametrize("got", [np.zeros(3), np.array([np.nan, 1.0]), np.array([np.inf, 1.0])])
def test_another_shape_or_a_non_number_is_infinitely_wrong(got: np.ndarray):
    assert relative_error(got, np.array([0.0, 1.0])) == float("inf")
