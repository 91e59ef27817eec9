"""The search of options on cached scores, and the file that it writes."""

import dataclasses
import json

import numpy as np
import pytest

from refdiff.cli import main
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import VARIANTS, RunOptions, options_for
from refdiff.contracts.tuned_options import TunedOptions, read_tuned_options
from refdiff.errors import InputError
from refdiff.evaluation.cached_scores import CachedScores
from refdiff.evaluation.tune import readings_of, search, split

pytest.importorskip("scipy")
pytest.importorskip("cv2")

from tests.support.data_sets import write_refer_tree

EDGE = VARIANTS["edge"]
TUNED = TunedOptions(
    model=find_bundle("mini").spec.name,
    variant="edge",
    mode="full",
    hard=0.25,
    soft=0.75,
    generative=0.5,
    place=0.2,
    contrast_balance=1.2,
    rescale=True,
    end_token=0.5,
    layer_weights=(1.0, 0.0, 2.0),
    coarse=0.0,
    propagate=0,
)


def _cached(samples: int = 60) -> CachedScores:
    """Two candidates a sample: CLIP prefers the wrong one, the second reading of the map the right one."""
    right = np.arange(samples) % 2
    is_right = np.arange(2) == right[:, None]  # [s, n]
    wrong = np.where(is_right, 0.0, 0.2).astype(np.float32)
    full = np.ones((samples, 2), dtype=np.bool_)
    inside = np.stack([wrong, is_right.astype(np.float32)])
    return CachedScores(
        options=EDGE,
        readings=(EDGE.attention, dataclasses.replace(EDGE.attention, rescale=True)),
        pictures=tuple(f"image {at // 2}" for at in range(samples)),
        hard=wrong,
        soft=wrong,
        place=np.zeros_like(wrong),
        inside=inside,
        outside=np.zeros_like(inside),
        kept=full,
        present=full,
        intersection_px=np.where(is_right, 90, 10),
        union_px=np.full((samples, 2), 100),
        truth_px=np.full(samples, 95),
        truth_contrast=np.zeros((2, samples), dtype=np.float32),
    )


def test_the_search_finds_the_reading_and_the_weights_that_choose_right():
    cached = _cached()
    held_out = split(cached.pictures, 0)
    assert cached.ious(cached.choose(EDGE.fusion, 0)).mean() == pytest.approx(0.1)
    fusion, reading, trials = search(cached, ~held_out, 0)
    assert (reading, trials > 500) == (1, True)
    assert cached.ious(cached.choose(fusion, reading))[held_out].mean() == pytest.approx(0.9)


def test_options_that_decide_nothing_leave_the_variant_as_it_is():
    cached = dataclasses.replace(_cached(), intersection_px=np.full((60, 2), 50))
    assert search(cached, np.ones(60, dtype=np.bool_), 0)[:2] == (EDGE.fusion, 0)


def test_an_image_is_held_out_with_all_of_its_samples():
    pictures = _cached().pictures
    held_out = split(pictures, 3)
    assert 20 <= held_out.sum() <= 28
    assert all(held_out[at] == held_out[at + 1] for at in range(0, 60, 2))
    with pytest.raises(InputError, match="got 5 images with a target, expected 20"):
        split(tuple("abcde"), 0)


def test_the_first_reading_is_the_variants_own_and_no_two_are_equal():
    spec = find_bundle("mini").spec.diffusion
    for maps, count in ((), 9), (("coarse",), 11), (("coarse", "self"), 17):
        readings = readings_of(EDGE.attention, spec.with_maps(maps))
        assert readings[0] == EDGE.attention
        assert len(set(readings)) == len(readings) == count
    assert not any(each.propagate for each in readings_of(EDGE.attention, spec.with_maps(["coarse"])))


def test_a_tuned_file_changes_the_options_and_the_name_of_their_confidence(tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({**TUNED.to_json(), "measured": {}}))
    spec = find_bundle("mini").spec
    got = RunOptions(tuned=read_tuned_options(path)).pipeline_options(spec)
    plain = options_for(spec)
    assert (got.fusion.soft, got.fusion.contrast_balance) == (0.75, 1.2)
    assert (got.attention.rescale, got.attention.layer_weights) == (True, (1.0, 0.0, 2.0))
    assert got.attention.timesteps == plain.attention.timesteps
    assert plain.key == "edge/full"
    assert got.key.startswith("edge/full, tuned ")


@pytest.mark.parametrize("change", [{"variant": "official"}, {"model": "sd15"}, {"mode": "gen+seg"}])
def test_options_of_another_model_variant_or_mode_are_refused(change):
    tuned = dataclasses.replace(TUNED, **change)
    with pytest.raises(InputError, match="the options were tuned for"):
        RunOptions(tuned=tuned).pipeline_options(find_bundle("mini").spec)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 9},
        {"hard": "much"},
        {"rescale": 1},
        {"layer_weights": 3},
        {"propagate": 1.5},
        {"soft": float("nan")},
    ],
)
def test_a_file_that_tune_did_not_write_is_refused(tmp_path, change):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({**TUNED.to_json(), **change}))
    with pytest.raises(InputError, match=r"tuned\.json holds no tuned options"):
        read_tuned_options(path)


@pytest.mark.slow
def test_the_verb_tunes_on_a_part_of_a_data_set_and_segment_takes_its_file(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    write_refer_tree(tmp_path, {"val": range(2_000_000, 2_000_020)})
    file = tmp_path / "tuned.json"
    few = ["tune", "mini", "--data", str(tmp_path), "--limit", "2"]
    assert main(few) == 2
    refused = capsys.readouterr().err
    assert "got 2 images" in refused
    assert "samples" not in refused  # no graph has run
    assert main(["tune", "mini", "--data", str(tmp_path), "-o", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads(file.read_text()) == report
    image = next((tmp_path / "images").rglob("*.png"))
    assert main(["segment", "mini", str(image), "the mug", "--options", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["confidence"] is None
