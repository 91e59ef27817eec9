import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.runtime.phrase import Phrase, Relation
from refdiff.runtime.spatial import heat_ramp, place_scores, ramp

SIZE = (60, 120)
BOXES = np.array([[0, 0, 9, 9], [50, 20, 69, 39], [100, 45, 119, 59]])  # top left, middle, bottom right
AREAS = np.array([100, 400, 300])


def _phrase(**cues):
    return Phrase(text="mug", root="mug", root_end=3, **cues)


def _best(similarity=None, **cues):
    return int(place_scores(_phrase(**cues), BOXES, AREAS, SIZE, similarity).argmax())


def test_left_falls_over_two_thirds_and_then_stays_at_zero():
    weights = ramp("left", 10)
    assert np.allclose(weights, [*np.linspace(1, 0, 6), 0, 0, 0, 0])


@given(st.integers(3, 200))  # below that the ramp is one pixel, and each side starts at its own end
def test_right_is_left_mirrored_and_none_is_one(width):
    assert np.allclose(ramp("right", width), ramp("left", width)[::-1], atol=1e-15)
    assert ramp(None, width).tolist() == [1.0] * width


@pytest.mark.parametrize(
    ("place", "best"), [("left", 0), ("top", 0), ("middle", 1), ("right", 2), ("bottom", 2)]
)
def test_a_place_favours_the_candidate_that_lies_there(place, best):
    assert _best(place=place) == best


@pytest.mark.parametrize(
    ("cue", "best"),
    [
        ({"superlative": "largest"}, 1),
        ({"superlative": "smallest"}, 0),
        ({"size": "large"}, 1),
        ({"size": "small"}, 0),
    ],
)
def test_a_size_favours_the_candidate_of_that_size(cue, best):
    assert _best(**cue) == best


@pytest.mark.parametrize(
    ("kind", "other", "best"),
    [
        ("left of", 1, 0),
        ("right of", 1, 2),
        ("above", 2, 0),
        ("behind", 1, 0),
        ("below", 0, 2),
        ("in front of", 1, 2),
        ("next to", 2, 1),
        ("bigger than", 2, 1),
        ("smaller than", 2, 0),
    ],
)
def test_a_relation_favours_the_candidate_that_lies_so_to_the_other(kind, other, best):
    similarity = np.full(3, 0.1, np.float32)
    similarity[other] = 0.3
    assert _best(similarity, relation=Relation(kind, "plate")) == best


def test_the_other_thing_itself_scores_low():
    similarity = np.array([0.1, 0.3, 0.1], np.float32)
    scores = place_scores(_phrase(relation=Relation("next to", "plate")), BOXES, AREAS, SIZE, similarity)
    assert scores.argmin() == 1
    assert scores[1] < 1e-6


def test_a_phrase_without_a_spatial_cue_scores_zero():
    assert place_scores(_phrase(), BOXES, AREAS, SIZE, None).tolist() == [0, 0, 0]


def test_a_relation_without_similarities_is_left_out():
    assert not place_scores(_phrase(relation=Relation("above", "plate")), BOXES, AREAS, SIZE, None).any()


def test_one_candidate_alone_is_scored_without_a_division_by_zero():
    cues = {"superlative": "largest", "relation": Relation("above", "plate"), "place": "left"}
    scores = place_scores(_phrase(**cues), BOXES[:1], AREAS[:1], SIZE, np.ones(1, np.float32))
    assert np.isfinite(scores).all()


@pytest.mark.slow
@given(
    st.sampled_from(["left", "right", "top", "bottom", "middle", None]),
    st.sampled_from(["largest", "smallest", None]),
    st.sampled_from(["left of", "next to", "bigger than", "in front of", None]),
    st.integers(1, 12),
    st.integers(0, 999),
)
def test_scores_stay_between_zero_and_one(place, superlative, kind, count, seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, [110, 50], (count, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 10, (count, 2))], axis=1)
    relation = kind and Relation(kind, "plate")
    phrase = _phrase(place=place, superlative=superlative, relation=relation)
    similarity = rng.normal(size=count).astype(np.float32)
    scores = place_scores(phrase, boxes, rng.integers(1, 900, count), SIZE, similarity)
    assert scores.shape == (count,)
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1 + 1e-6)).all()


@pytest.mark.parametrize("place", ["left", "right", "top", "bottom"])
def test_the_heat_ramp_halves_the_far_side(place):
    factor = heat_ramp(_phrase(place=place), SIZE)
    near = {"left": factor[:, 0], "right": factor[:, -1], "top": factor[0], "bottom": factor[-1]}[place]
    far = {"left": factor[:, -1], "right": factor[:, 0], "top": factor[-1], "bottom": factor[0]}[place]
    assert factor.shape == SIZE
    assert (near == 1).all()
    assert (far == 0.5).all()


@pytest.mark.parametrize("place", ["middle", None])
def test_no_side_leaves_the_heat_alone(place):
    assert (heat_ramp(_phrase(place=place), SIZE) == 1).all()
