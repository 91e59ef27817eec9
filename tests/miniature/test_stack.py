"""The shipped miniature: its files, and what it can do on scenes it has never seen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import refdiff
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.options import RunOptions
from refdiff.data.synthetic import RenderedScenes
from refdiff.evaluation.evaluate import evaluate
from refdiff.verification import check

ROOM = Path(refdiff.__file__).parent / "miniature"
PARTS = ("vae", "text", "unet", "sam", "clip")


def test_weights_and_bundle_stay_within_forty_megabytes():
    files = [
        file for folder in ("weights", "bundle") for file in (ROOM / folder).rglob("*") if file.is_file()
    ]
    assert len(files) > len(PARTS)
    assert sum(file.stat().st_size for file in files) <= 40_000_000


def test_the_bundle_was_exported_from_the_weights_next_to_it():
    sources = open_bundle(ROOM / "bundle").manifest.sources
    assert dict(sources) == {
        part: hashlib.sha256((ROOM / "weights" / f"{part}.safetensors").read_bytes()).hexdigest()
        for part in PARTS
    }


def test_the_weights_say_how_long_each_stage_was_trained():
    record = json.loads((ROOM / "weights" / "training.json").read_text())
    assert set(record) == {"vae", "sam", "clip", "diffusion"}
    assert all(stage["step"] > 0 and stage["elapsed_s"] > 0 for stage in record.values())


@pytest.mark.slow
def test_the_bundle_repeats_its_golden_record_without_torch():
    assert check.check("mini", dataset=None).passed


@pytest.mark.slow
@pytest.mark.needs_torch
def test_the_runtime_is_the_reference_on_held_out_scenes():
    report = check.check("mini", dataset=RenderedScenes(count=4))
    assert report.passed, report.failure
    assert report.task.count == 4


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "least"), [("edge", 0.70), ("official", 0.60)])
def test_held_out_scenes_are_segmented(variant, least):
    """The full measurement is a benchmark; 40 scenes scatter by about 0.05 around it."""
    report = evaluate("mini", RenderedScenes(count=40), options=RunOptions(variant=variant))
    assert report.summary.miou >= least
    assert report.summary.oracle_miou >= report.summary.miou
