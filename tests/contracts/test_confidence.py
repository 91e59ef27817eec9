"""A calibration survives its files, and a damaged one is one clear line."""

import copy
import json

import numpy as np
import pytest

from refdiff.contracts.confidence import Calibration, ConfidenceModel, Term
from refdiff.errors import BundleError

WIDTH = 4


def make_model(**changes):
    eye = np.eye(WIDTH, dtype=np.float32)
    values = {
        "bias": 0.25,
        "terms": (
            Term(feature="text_crop", weight=1.5, mean=0.5, scale=2.0),
            Term(feature="place", weight=-1.0, mean=0.0, scale=1.0, cap=0.5, when="has_place"),
        ),
        "nouns": ("book", "mug"),
        "attributes": ("red",),
        "noun_vectors": eye[:2],
        "attribute_vectors": eye[2:3],
        "crop_mean": np.zeros(WIDTH, np.float32),
        "crop_covariance": eye,
        "context_mean": np.zeros(WIDTH, np.float32),
        "context_covariance": eye,
        "fitted_on": {"samples": 10},
    }
    return ConfidenceModel(**{**values, **changes})


def read(text, arrays, width=WIDTH):
    return Calibration.from_files(json.loads(text), arrays, embed_dim=width, where="confidence.json")


def test_a_calibration_survives_its_files():
    text, arrays = Calibration(models={"edge/full": make_model()}).to_files()
    model = read(text, arrays).models["edge/full"]
    assert model.terms == make_model().terms
    assert (model.bias, model.nouns, model.attributes) == (0.25, ("book", "mug"), ("red",))
    assert np.array_equal(model.noun_vectors, make_model().noun_vectors)


def test_the_probability_is_the_logistic_of_capped_and_conditional_terms():
    features = {"text_crop": 2.5, "place": 0.9, "has_place": 1.0}
    expected = 0.25 + 1.5 * (2.5 - 0.5) / 2 - 1.0 * 0.5
    assert make_model().probability(features) == pytest.approx(1 / (1 + np.exp(-expected)))
    without = {**features, "has_place": 0.0}
    assert make_model().probability(without) == pytest.approx(1 / (1 + np.exp(-(0.25 + 1.5))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format=2), "format is 2, expected 1"),
        (lambda d: d.pop("models"), "'models' is missing"),
        (lambda d: d["models"]["edge/full"].update(bias=float("nan")), "bias is nan"),
        (lambda d: d["models"]["edge/full"].update(bias="much"), "bias is 'much'"),
        (lambda d: d["models"]["edge/full"]["terms"][0].update(scale=0), "scale is 0"),
        (lambda d: d["models"]["edge/full"]["terms"][0].pop("feature"), "'feature' is missing"),
        (lambda d: d["models"]["edge/full"].update(nouns=["book"]), "noun_vectors"),
        (lambda d: d["models"]["edge/full"].update(nouns=[3, 4]), "a noun is 3"),
        (lambda d: d["models"].update({"official/full": {}}), "is missing"),
    ],
)
def test_a_damaged_calibration_is_one_clear_line(change, said):
    text, arrays = Calibration(models={"edge/full": make_model()}).to_files()
    document = copy.deepcopy(json.loads(text))
    change(document)
    with pytest.raises(BundleError, match=said) as caught:
        Calibration.from_files(document, arrays, embed_dim=WIDTH, where="confidence.json")
    assert "fit it again" in str(caught.value)


def test_arrays_of_another_model_are_refused():
    text, arrays = Calibration(models={"edge/full": make_model()}).to_files()
    with pytest.raises(BundleError, match="expected finite float32"):
        read(text, arrays, width=5)
    arrays["edge/full/crop_mean"][0] = np.inf
    with pytest.raises(BundleError, match="crop_mean"):
        read(text, arrays)
