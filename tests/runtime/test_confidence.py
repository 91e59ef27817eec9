"""Features of a confidence, and what a minimum confidence does to answers."""

import dataclasses

import numpy as np
import pytest

from refdiff.contracts.results import Candidates, Scores
from refdiff.runtime.confidence import (
    FEATURES,
    ConfidenceJudge,
    Evidence,
    features_of,
    own_attribute,
    standardized,
)
from refdiff.runtime.phrase import parse_phrase
from refdiff.runtime.segmentation import NOT_CALIBRATED, Segmentation
from tests.contracts.test_confidence import WIDTH, make_model

PHRASE = parse_phrase("the red mug on the left", word_boundaries=True)


def make_answer():
    masks = np.zeros((3, 4, 4), bool)
    masks[0, :2], masks[1, 2:], masks[2] = True, True, True
    values = {
        name: np.array([0.3, 0.2, 0.1], np.float32)
        for name in ("hard", "soft", "generative", "place", "total")
    }
    candidates = Candidates(
        masks=masks,
        predicted_iou=np.array([0.9, 0.8, 0.7], np.float32),
        areas_px=np.array([8, 8, 16]),
        boxes_xyxy_px=np.array([[0, 0, 3, 1], [0, 2, 3, 3], [0, 0, 3, 3]]),
        kept=np.array([True, True, False]),
    )
    heat = np.zeros((4, 4), np.float32)
    heat[:2] = 1
    return Segmentation(
        phrase=PHRASE.text,
        root="mug",
        mask=masks[0],
        index=0,
        score=0.3,
        scores=Scores(**values),
        heat=heat,
        candidates=candidates,
        cautions=("miniature: x", NOT_CALIBRATED),
    )


class FakeClip:
    """Returns the same vectors for every image."""

    def __init__(self, vectors):
        self.vectors = vectors

    def vectors_of_kept(self, views, phrase):
        return self.vectors, self.vectors


VECTORS = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32)
TEXTS = {PHRASE.text: VECTORS[0], PHRASE.root: VECTORS[0]}


def judge(model, least=None, vectors=VECTORS, probe=None):
    return ConfidenceJudge(FakeClip(vectors), model, least, probe).judge(
        make_answer(), PHRASE, object(), TEXTS
    )


def test_features_are_those_that_are_described_and_a_model_weighs_them():
    seen = []
    answer = judge(make_model(), probe=seen.append)
    assert isinstance(seen[0], Evidence)
    features = features_of(seen[0], make_model())
    assert set(features) == set(FEATURES)
    assert features["heat_inside"] == features["heat_share"] == 1.0
    assert features["heat_margin"] == 1.0  # the other candidate is cold
    assert features["total_margin"] == pytest.approx(0.1)
    assert features["has_attribute"] == features["has_place"] == 1.0
    assert answer.confidence == pytest.approx(make_model().probability(features))
    assert answer.cautions == ("miniature: x",)


def test_without_a_model_there_is_no_confidence():
    answer = judge(None)
    assert answer.confidence is None
    assert NOT_CALIBRATED in answer.cautions


@pytest.mark.parametrize(
    ("model", "had"), [(make_model(bias=-9.0), "confidence 0.00"), (None, "there is no confidence")]
)
def test_a_mask_below_the_minimum_is_withheld_with_the_reason(model, had):
    answer = judge(model, 0.5)
    assert not answer.matched
    assert not answer.mask.any()
    assert answer.reason == f"{had}, at least 0.50 was asked for"
    kept = judge(make_model(bias=9.0), 0.5)
    assert kept.matched
    assert kept.confidence > 0.5


def test_a_head_word_that_the_fit_does_not_know_has_no_confidence():
    answer = judge(make_model(noun_vectors=np.eye(WIDTH, dtype=np.float32)[2:4]))
    assert answer.confidence is None
    assert "'mug' is not among the 2 words" in answer.cautions[-1]
    assert not judge(make_model(noun_vectors=np.eye(WIDTH, dtype=np.float32)[2:4]), 0.1).matched


def test_an_empty_answer_stays_empty():
    empty = dataclasses.replace(make_answer(), index=None, reason="no candidates")
    answer = ConfidenceJudge(FakeClip(VECTORS), make_model(), 0.5).judge(empty, PHRASE, object(), TEXTS)
    assert answer is empty


def test_cosines_are_standardized_over_the_candidates_of_the_fit():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(WIDTH, WIDTH))
    vectors = rng.normal(size=(5000, WIDTH)) @ mixing + rng.normal(size=WIDTH)
    mean, covariance = vectors.mean(axis=0), np.cov(vectors.T)
    text = rng.normal(size=(1, WIDTH)).astype(np.float32)
    values = np.array([standardized(text, each, mean, covariance)[0] for each in vectors[:500]])
    cosines = vectors[:500] @ text[0]
    assert values == pytest.approx(
        (cosines - (vectors @ text[0]).mean()) / (vectors @ text[0]).std(), abs=1e-2
    )


def test_the_attribute_is_the_head_s_own():
    attributes = ("blue", "red")
    assert own_attribute(parse_phrase("the red mug", word_boundaries=True), attributes) == 1
    assert (
        own_attribute(parse_phrase("the mug next to the red book", word_boundaries=True), attributes) is None
    )
