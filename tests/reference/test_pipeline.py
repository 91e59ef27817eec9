"""The reference as a whole: every variant and mode, on an image that is not square."""

import dataclasses

import numpy as np
import pytest

from refdiff.contracts.options import MODES, VARIANTS, options_for
from refdiff.errors import InputError

pytest.importorskip("torch")

from refdiff.reference.pipeline import Reference
from tests.support.tiny_stack import TINY, tiny_picture, tiny_stack

pytestmark = pytest.mark.needs_torch

PHRASE = "the small man on the left of the table"


def _reference(variant="official", mode="full", **changes):
    options = options_for(TINY, variant=variant, mode=mode)
    return Reference(stack=tiny_stack(), options=dataclasses.replace(options, **changes))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_profile_and_mode_answers_on_the_pictures_own_pixels(variant, mode):
    result = _reference(variant, mode).segment(tiny_picture(), PHRASE)
    assert result.mask.shape == (48, 72)
    assert result.index is not None
    assert np.array_equal(result.mask, result.candidates.masks[result.index])
    assert result.score == result.scores.total[result.index] == result.scores.total.max()
    assert (result.heat is None) == (mode == "disc+seg")


def test_the_same_seed_gives_the_same_answer_to_the_last_bit():
    first, second = (_reference().segment(tiny_picture(), PHRASE) for _ in range(2))
    assert np.array_equal(first.scores.total, second.scores.total)
    assert np.array_equal(first.heat, second.heat)


def test_another_seed_gives_another_map():
    first, second = (_reference(seed=seed).segment(tiny_picture(), PHRASE).heat for seed in (0, 1))
    assert not np.allclose(first, second, atol=1e-2)


def test_phrases_that_share_an_image_are_answered_as_if_alone():
    reference = _reference("edge")
    encoded = reference.encode(tiny_picture())
    reference.segment_encoded(encoded, "man on the right")
    shared, alone = reference.segment_encoded(encoded, PHRASE), reference.segment(tiny_picture(), PHRASE)
    assert np.array_equal(shared.scores.total, alone.scores.total)


def test_the_total_is_the_weighted_sum_of_the_parts():
    proposals = dataclasses.replace(options_for(TINY, variant="official").proposals, stability_threshold=0.05)
    result = _reference(proposals=proposals).segment(tiny_picture(), PHRASE)
    scores = result.scores
    expected = 0.7 * scores.hard + 0.3 * scores.soft + 0.05 * scores.generative
    assert len(scores.total) > 1
    np.testing.assert_allclose(scores.total, np.where(result.candidates.kept, expected, 0), atol=1e-6)


def test_a_filtered_candidate_cannot_win_in_edge_and_nothing_kept_is_said():
    options = options_for(TINY, variant="edge").proposals
    nothing_kept = dataclasses.replace(options, min_area_share=1.0)
    result = _reference("edge", proposals=nothing_kept).segment(tiny_picture(), PHRASE)
    assert result.index is None
    assert not result.mask.any()
    assert result.reason == "no proposal passes the filters"


def test_nothing_kept_gives_the_first_candidate_in_official_as_released():
    nothing_kept = dataclasses.replace(options_for(TINY, variant="official").proposals, min_area_px=10_000)
    result = _reference(proposals=nothing_kept).segment(tiny_picture(), PHRASE)
    assert (result.index, result.score) == (0, 0.0)


def test_the_focus_word_of_the_caller_is_read_instead_of_the_head():
    result = _reference(mode="gen").segment(tiny_picture(), PHRASE, focus="table")
    assert result.root == "table"


def test_a_picture_that_is_not_rgb_bytes_is_refused():
    with pytest.raises(InputError, match=r"expected \[y, x, 3\] uint8"):
        _reference().encode(np.zeros((4, 4), dtype=np.uint8))


def test_the_paper_reads_the_crop_with_the_root_word_too():
    paper = _reference("paper", "disc+seg")
    named, other = (paper.segment(tiny_picture(), PHRASE, focus=word).scores for word in ("man", "table"))
    assert not np.allclose(named.hard, other.hard)
    official = _reference("official", "disc+seg")
    named, other = (official.segment(tiny_picture(), PHRASE, focus=word).scores for word in ("man", "table"))
    np.testing.assert_array_equal(named.hard, other.hard)
    assert not np.allclose(named.soft, other.soft)
