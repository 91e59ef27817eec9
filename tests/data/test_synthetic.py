"""Rendered scenes as samples, and the seeds they are taken from."""

import numpy as np
import pytest

from refdiff.data.sample import Sample, image_hashes, true_mask
from refdiff.data.synthetic import (
    CALIBRATION_FROM,
    DEMO_SEEDS,
    HELD_OUT_FROM,
    RenderedScenes,
    calibration_scenes,
    demo_samples,
    encoded,
    scene_sample,
)
from refdiff.errors import InputError
from refdiff.miniature.scenes import render_scene


def test_a_sample_is_the_same_every_time_and_its_truth_is_one_object() -> None:
    first, again = scene_sample(1_000_009), scene_sample(1_000_009)
    assert first is not None
    assert again is not None
    assert first.phrase == again.phrase == "the bowl behind the blue ball"
    assert np.array_equal(true_mask(first), true_mask(again))
    assert any(np.array_equal(first.truth, mask) for mask in render_scene(1_000_009).masks)


def test_demo_scenes_are_held_out_and_not_all_square() -> None:
    samples = demo_samples()
    assert [sample.seed for sample in samples] == list(DEMO_SEEDS)
    assert min(DEMO_SEEDS) >= HELD_OUT_FROM
    shapes = {sample.read().shape[0] - sample.read().shape[1] for sample in samples}
    assert min(shapes) < 0 < max(shapes)


@pytest.mark.slow
def test_calibration_scenes_are_neither_of_training_nor_held_out() -> None:
    scenes = calibration_scenes(32)
    samples = list(scenes)
    seeds = [sample.seed for sample in samples if sample.seed is not None]
    assert len(seeds) == len(scenes) == 32
    assert seeds == sorted(set(seeds))
    assert seeds[0] >= 20_000  # training drew from 0 to 19,999
    assert seeds[-1] < HELD_OUT_FROM
    assert len(set(image_hashes(samples))) == 32


def test_calibration_scenes_that_would_reach_the_held_out_ones_are_refused() -> None:
    for seed in (HELD_OUT_FROM, HELD_OUT_FROM - 1):
        with pytest.raises(InputError, match="are for judging"):
            calibration_scenes(2, seed)


def test_rendered_scenes_are_identified_by_seed_and_count() -> None:
    scenes = RenderedScenes(count=2, seed=CALIBRATION_FROM)
    assert scenes.fingerprint == {"kind": "scenes", "seed": 500_000, "count": 2}
    assert (
        [sample.id for sample in scenes]
        == [sample.id for sample in scenes]
        == [
            "scene 500000",
            "scene 500001",
        ]
    )
    with pytest.raises(InputError, match="got count 0 and seed 7"):
        RenderedScenes(count=0, seed=7)


def test_an_encoded_sample_holds_the_same_pixels() -> None:
    sample = demo_samples(1)[0]
    assert isinstance(encoded(sample).image, bytes)
    assert np.array_equal(encoded(sample).read(), sample.read())


def test_a_sample_without_a_mask_cannot_be_measured() -> None:
    with pytest.raises(InputError, match=r"photo has no true mask"):
        true_mask(Sample(id="photo", image=b"", phrase="the mug"))
