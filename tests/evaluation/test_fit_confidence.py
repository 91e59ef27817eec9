"""Fitting a confidence, and the bundle that holds it."""

import json
import shutil

import numpy as np
import pytest

from refdiff.cli import main
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.bundle_writer import add_calibration
from refdiff.contracts.confidence import Calibration
from refdiff.contracts.inspection import find_bundle
from refdiff.data.synthetic import RenderedScenes, ScenesWithFalsehoods
from refdiff.errors import BundleError, InputError
from refdiff.evaluation.fit_confidence import fit_confidence
from refdiff.miniature.scenes.phrases import FALSEHOODS
from tests.contracts.test_confidence import make_model


@pytest.fixture
def own_bundle(tmp_path):
    """A copy of the built-in bundle."""
    return shutil.copytree(find_bundle("mini").path, tmp_path / "bundle")


def test_a_calibration_is_put_into_a_bundle_and_verified_with_it(own_bundle):
    before = open_bundle(own_bundle)
    plan = own_bundle / "engines" / "plan"
    plan.parent.mkdir(exist_ok=True)
    plan.write_bytes(b"built here")
    width = before.spec.clip.embed_dim
    wide = {name: np.zeros(width, np.float32) for name in ("crop_mean", "context_mean")}
    square = {name: np.eye(width, dtype=np.float32) for name in ("crop_covariance", "context_covariance")}
    vectors = {
        "noun_vectors": np.eye(width, dtype=np.float32)[:2],
        "attribute_vectors": np.eye(width, dtype=np.float32)[:1],
    }
    manifest = add_calibration(
        before, Calibration(models={"edge/full": make_model(**wide, **square, **vectors)})
    )
    after = open_bundle(own_bundle)
    assert after.manifest.sha256 == manifest.sha256 != before.manifest.sha256
    assert set(after.calibration().models) == {"edge/full"}
    assert plan.read_bytes() == b"built here"
    assert {name: after.manifest.files[name] for name in before.manifest.graphs["unet"].files} == {
        name: before.manifest.files[name] for name in before.manifest.graphs["unet"].files
    }
    text = (own_bundle / "confidence.json").read_text()
    (own_bundle / "confidence.json").write_text(text.replace('"bias": 0.25', '"bias": 0.52'))
    with pytest.raises(BundleError, match=r"confidence\.json was changed"):
        open_bundle(own_bundle)


def test_scenes_with_falsehoods_hold_true_and_false_phrases_about_one_image():
    samples = list(ScenesWithFalsehoods(count=6, seed=5))
    assert {sample.picture for sample in samples} == {f"scene {seed}" for seed in range(5, 11)}
    false = [sample for sample in samples if not sample.truth.any()]
    assert {sample.subset for sample in false} <= {f"scenes, no such {each}" for each in FALSEHOODS}
    assert len(false) > 10
    assert len({sample.id for sample in samples}) == len(samples)
    assert [sample.phrase for sample in samples] == [s.phrase for s in ScenesWithFalsehoods(count=6, seed=5)]


@pytest.mark.slow
def test_a_fit_separates_right_answers_and_answers_carry_the_confidence(own_bundle, capsys):
    assert main(["eval", str(own_bundle), "--fit-confidence", "--count", "24", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["auroc"] > report["auroc_of_score"]
    assert report["auroc"] > 0.8
    bundle = open_bundle(own_bundle)
    assert bundle.manifest.sha256 == report["manifest_sha256"]
    assert bundle.calibration().models["edge/full"].fitted_on["seed"] == 0
    assert main(["eval", str(own_bundle), "--falsehoods", "--count", "2", "--seed", "2000000", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["absent"] > 0


@pytest.mark.slow
def test_what_cannot_be_fitted_is_refused(own_bundle):
    with pytest.raises(InputError, match="the built-in bundle mini, whose files belong to the package"):
        fit_confidence("mini", RenderedScenes(count=1))
    with pytest.raises(InputError, match="expected 100 or more"):
        fit_confidence(own_bundle, RenderedScenes(count=2))
