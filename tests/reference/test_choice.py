"""The reference's candidates and scores, against the method's text and the runtime's arithmetic."""

import dataclasses

import numpy as np
import pytest

from refdiff.contracts.options import VARIANTS, FusionOptions, Options, ProposalOptions, options_for
from refdiff.runtime import proposals as runtime_proposals
from refdiff.runtime import scoring as runtime_scoring

pytest.importorskip("torch")

from refdiff.reference import candidates
from tests.support.tiny_stack import TINY, tiny_picture, tiny_stack

pytestmark = pytest.mark.needs_torch


def _heat_and_masks():
    rng = np.random.default_rng(3)
    masks = rng.random((5, 12, 17)) > np.array([0.1, 0.4, 0.6, 0.9, 2.0])[:, None, None]
    return rng.random((12, 17), dtype=np.float32), masks


def _fuse(variant, parts, kept, mode="full"):
    options = dataclasses.replace(VARIANTS[variant], mode=mode)
    scores = {name: np.array(part, dtype=np.float32) for name, part in parts.items()}
    return candidates.fuse(options, scores, np.array(kept))


def test_candidates_come_best_first_with_inclusive_boxes():
    options = dataclasses.replace(options_for(TINY, variant="official").proposals, stability_threshold=0.05)
    found = candidates.propose(tiny_stack(), options, tiny_picture())
    assert len(found) > 1
    assert (np.diff(found.predicted_iou) <= 0).all()
    for mask, area, (x0, y0, x1, y1) in zip(found.masks, found.areas_px, found.boxes_xyxy_px, strict=True):
        assert mask.sum() == area == mask[y0 : y1 + 1, x0 : x1 + 1].sum()
        assert mask[y0].any() and mask[y1].any() and mask[:, x0].any() and mask[:, x1].any()


def test_where_sam_finds_nothing_the_whole_image_is_the_candidate():
    strict = ProposalOptions(points_per_side=2, pred_iou_threshold=99.0)
    found = candidates.propose(tiny_stack(), strict, tiny_picture())
    assert found.masks.shape == (1, 48, 72)
    assert found.masks.all()
    assert found.boxes_xyxy_px.tolist() == [[0, 0, 71, 47]]
    assert found.kept.all()


@pytest.mark.parametrize(
    "changes", [{}, {"keep_largest": 2}, {"min_area_px": 50}, {"min_area_share": 0.5, "min_area_px": 1}]
)
def test_the_area_filter_is_the_runtimes(changes):
    options, areas = ProposalOptions(**changes), np.array([100, 7, 50, 0, 51, 100])
    got = candidates.keep_by_area(areas, 102, options)
    assert np.array_equal(got, runtime_proposals.keep_by_area(areas, (6, 17), options))


def test_an_area_at_the_limit_is_filtered_out():
    kept = candidates.keep_by_area(np.array([10_000, 10_001]), 10**6, ProposalOptions(min_area_px=10_000))
    assert kept.tolist() == [False, True]


@pytest.mark.parametrize("balance", [1.0, 1.8])
def test_the_contrast_is_the_runtimes_and_counts_an_absent_side_as_zero(balance):
    heat, masks = _heat_and_masks()
    masks[0] = True
    got = candidates.contrast(heat, masks, balance)
    np.testing.assert_allclose(got, runtime_scoring.attention_contrast(heat, masks, balance), atol=1e-6)
    assert got[0] == pytest.approx((2 - balance) * heat.mean(), abs=1e-6)
    assert got[-1] == pytest.approx(-balance * heat.mean(), abs=1e-6)


def test_a_filtered_mask_beats_negative_scores_in_official_only():
    parts = {"hard": [-0.2, 0.9, -0.1]}
    kept = [True, False, True]
    assert candidates.choose(_fuse("official", parts, kept)) == 1
    assert candidates.choose(_fuse("edge", parts, kept)) == 2


def test_nothing_kept_is_the_first_mask_in_official_and_no_match_in_edge():
    parts, kept = {"hard": [0.2, 0.9]}, [False, False]
    assert candidates.choose(_fuse("official", parts, kept)) == 0
    assert candidates.choose(_fuse("edge", parts, kept)) is None


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["gen+seg", "disc+seg", "full"])
def test_the_fusion_is_the_runtimes(variant, mode):
    rng = np.random.default_rng(0)
    parts = {name: rng.standard_normal(6) for name in ("hard", "soft", "generative", "place")}
    kept = [True, True, False, True, False, True]
    got = _fuse(variant, parts, kept, mode)
    theirs = runtime_scoring.fuse(dataclasses.replace(VARIANTS[variant], mode=mode), parts, np.array(kept))
    for field in dataclasses.fields(got):
        np.testing.assert_allclose(getattr(got, field.name), getattr(theirs, field.name), atol=1e-6)


@pytest.mark.parametrize("selector", ["contrast", "between-class"])
def test_level_sets_are_nested_and_scored_as_the_runtime_scores_them(selector):
    heat, _ = _heat_and_masks()
    heat *= np.float32(0.9)  # nothing reaches the highest level
    levels, theirs = candidates.level_sets(heat), runtime_proposals.level_sets(heat)
    assert len(levels) == 19
    assert np.array_equal(levels.masks, theirs.masks)
    assert np.array_equal(levels.boxes_xyxy_px, theirs.boxes_xyxy_px)
    assert not levels.kept[-1]
    options = Options(mode="gen", fusion=FusionOptions(level_selector=selector))
    got = candidates.score_levels(options.fusion, heat, levels)
    expected = runtime_scoring.fuse(
        options, runtime_scoring.heatmap_scores(options, heat, theirs), theirs.kept
    )
    np.testing.assert_allclose(got.total, expected.total, atol=1e-6)
    assert candidates.choose(got) == int(expected.total.argmax())


def test_the_between_class_selector_finds_the_object_the_contrast_shrinks():
    heat = np.full((20, 30), 0.1, dtype=np.float32)
    heat[5:15, 5:15] = 0.8
    heat[9, 9] = 1.0
    levels = candidates.level_sets(heat)
    chosen = {
        selector: levels.areas_px[
            candidates.choose(candidates.score_levels(FusionOptions(level_selector=selector), heat, levels))
        ]
        for selector in ("contrast", "between-class")
    }
    assert chosen == {"contrast": 1, "between-class": 100}
