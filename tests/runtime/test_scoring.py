import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.options import FusionOptions, Options, ProposalOptions
from refdiff.errors import EngineError
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.proposals import level_sets
from refdiff.runtime.scoring import (
    attention_contrast,
    between_class_variance,
    choose,
    fuse,
    heatmap_scores,
    select,
)

PARTS = {
    "hard": np.array([0.2, 0.3, 0.1], np.float32),
    "soft": np.array([0.1, 0.0, 0.3], np.float32),
    "generative": np.array([0.5, -0.5, 0.0], np.float32),
    "place": np.array([0.0, 1.0, 0.0], np.float32),
}
ALL = np.ones(3, dtype=np.bool_)


def _fuse(mode="full", parts=None, kept=ALL, drop_filtered=False, **weights):
    proposals = ProposalOptions(drop_filtered=drop_filtered)
    options = Options(mode=mode, proposals=proposals, fusion=FusionOptions(**weights))
    return fuse(options, parts or PARTS, kept)


def _score_levels(heat, levels, **weights):
    options = Options(mode="gen", fusion=FusionOptions(**weights))
    return fuse(options, heatmap_scores(options, heat, levels), levels.kept)


def _heat():
    heat = np.zeros((6, 10), np.float32)
    heat[1:4, 2:7], heat[2, 3:6] = 0.6, 1.0
    return heat


def test_contrast_is_the_mean_inside_minus_the_mean_outside():
    heat, masks = _heat(), np.random.default_rng(0).random((4, 6, 10)) > 0.5
    expected = [heat[mask].mean() - heat[~mask].mean() for mask in masks]
    assert np.allclose(attention_contrast(heat, masks), expected, atol=1e-6)


def test_an_empty_and_a_full_mask_are_scored_not_divided_by_zero():
    heat = _heat()
    masks = np.stack([np.zeros_like(heat, dtype=np.bool_), np.ones_like(heat, dtype=np.bool_)])
    assert np.allclose(attention_contrast(heat, masks), [-heat.mean(), heat.mean()], atol=1e-6)


def test_balance_counts_the_outside_against_the_inside():
    heat, masks = _heat(), (_heat() > 0.5)[None]
    inside, outside = heat[masks[0]].mean(), heat[~masks[0]].mean()
    assert np.allclose(attention_contrast(heat, masks, 1.8), 0.2 * inside - 1.8 * outside, atol=1e-6)


def test_the_official_total_is_the_weighted_sum():
    total = 0.7 * PARTS["hard"] + 0.3 * PARTS["soft"] + 0.05 * PARTS["generative"]
    assert np.allclose(_fuse().total, total)


@pytest.mark.parametrize(
    ("mode", "unused"),
    [("gen+seg", {"hard", "soft", "place"}), ("disc+seg", {"generative"}), ("full", set())],
)
def test_a_part_the_mode_does_not_use_is_zero(mode, unused):
    scores = _fuse(mode)
    assert {name for name in PARTS if not getattr(scores, name).any()} == unused


def test_generative_proposals_are_scored_by_the_contrast_alone():
    assert np.array_equal(_fuse("gen+seg").total, PARTS["generative"])


def test_released_filter_lets_a_filtered_mask_win_against_negative_scores():
    parts = {"hard": np.array([0.5, -0.1, -0.2], np.float32)}
    kept = np.array([False, True, True])
    scores = _fuse(parts=parts, kept=kept)
    assert scores.total[0] == 0
    assert choose(scores) == 0


def test_released_filter_answers_the_first_mask_when_nothing_is_kept():
    assert choose(_fuse(kept=~ALL)) == 0


def test_dropped_candidates_cannot_win():
    scores = _fuse(parts={"hard": -PARTS["hard"]}, kept=np.array([False, True, False]), drop_filtered=True)
    assert scores.total.tolist()[::2] == [-np.inf, -np.inf]
    assert choose(scores) == 1


def test_nothing_matches_when_everything_is_dropped():
    assert choose(_fuse(kept=~ALL, drop_filtered=True)) is None


def test_a_score_that_is_not_finite_stops_the_run():
    with pytest.raises(EngineError, match="hard score is not finite"):
        _fuse(parts={"hard": np.array([0.1, np.nan, 0.2])})


def test_of_equal_scores_the_first_wins():
    assert choose(_fuse(parts={"hard": np.array([0.1, 0.4, 0.4], np.float32)})) == 1


def test_level_sets_are_nested_and_an_empty_one_is_not_kept():
    levels = level_sets(_heat() * 0.7)
    assert len(levels) == 19
    assert (levels.masks[1:] <= levels.masks[:-1]).all()
    assert levels.kept.tolist() == [bool(mask.any()) for mask in levels.masks]
    assert not levels.kept[-1]


def test_contrast_picks_the_peak_and_between_class_variance_the_object():
    heat = _heat()
    levels = level_sets(heat)
    peak = choose(_score_levels(heat, levels, level_selector="contrast"))
    thing = choose(_score_levels(heat, levels, level_selector="between-class"))
    assert np.array_equal(levels.masks[peak], heat > 0.9)
    assert np.array_equal(levels.masks[thing], heat > 0.5)


@given(st.integers(0, 2**31))
def test_between_class_variance_is_otsus(seed):
    heat = np.random.default_rng(seed).random((5, 8)).astype(np.float32)
    mask = heat > 0.4
    if mask.all() or not mask.any():
        return
    share = mask.mean()
    expected = share * (1 - share) * (heat[mask].mean() - heat[~mask].mean()) ** 2
    assert np.isclose(between_class_variance(heat, mask[None])[0], expected, atol=1e-5)


def test_a_flat_map_matches_nothing_and_says_why():
    heat = np.zeros((4, 7), np.float32)
    levels = level_sets(heat)
    scores = _score_levels(heat, levels)
    result = select(
        levels, scores, Phrase("the mug", "mug", 7), heat, empty_reason="the attention map is flat"
    )
    assert result.index is None
    assert result.mask.shape == (4, 7)
    assert not result.mask.any()
    assert result.reason == "the attention map is flat"
    assert result.score == -np.inf


def test_a_levels_scores_are_its_contrast_whichever_way_it_is_chosen():
    heat = _heat()
    levels = level_sets(heat * np.float32(0.7))
    for selector in ("contrast", "between-class"):
        scores = _score_levels(heat, levels, level_selector=selector)
        assert np.array_equal(scores.generative, attention_contrast(heat, levels.masks))
        assert np.array_equal(np.isfinite(scores.total), levels.kept)
        assert not scores.hard.any() and not scores.soft.any() and not scores.place.any()
