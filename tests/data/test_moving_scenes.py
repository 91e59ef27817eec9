"""Clips of moving rendered scenes: exact masks, motion, crossing, leaving, cuts, phrases."""

import sys
from itertools import pairwise

import numpy as np
import pytest

from refdiff.data.moving_scenes import MovingScene
from refdiff.errors import InputError, MissingDependencyError

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")

SIZE_YX = 240, 320


@pytest.fixture(scope="module")
def clip() -> MovingScene:
    return MovingScene(1, size_yx=SIZE_YX)


def centre_of(mask):
    return np.array([places.mean() for places in np.nonzero(mask)][::-1])


def test_a_clip_is_the_same_every_time_and_in_any_order(clip):
    again = MovingScene(1, size_yx=SIZE_YX)
    assert again.phrases == clip.phrases
    for number in (40, 3, 230):
        first, second = clip.frame(number), again.frame(number)
        assert np.array_equal(first.pixels, second.pixels)
        assert np.array_equal(first.masks, second.masks)
    assert first.pixels.shape == (*SIZE_YX, 3)
    assert first.pixels.dtype == np.uint8


def test_another_seed_is_another_clip(clip):
    assert not np.array_equal(MovingScene(2, size_yx=SIZE_YX).frame(0).pixels, clip.frame(0).pixels)


def test_a_pixel_belongs_to_one_object_at_most(clip):
    for number in range(0, clip.length, 20):
        assert clip.frame(number).masks.sum(axis=0).max() <= 1


def test_only_the_objects_of_the_shot_are_visible_and_the_clip_cuts_back(clip):
    assert clip.cuts == (210, 255)
    visible = [set(np.flatnonzero(clip.frame(number).masks.any(axis=(1, 2)))) for number in (209, 210, 255)]
    assert not visible[0] & visible[1]
    assert visible[1]
    assert visible[2] <= set(range(min(visible[1])))
    assert MovingScene(1, size_yx=SIZE_YX, cut=False).cuts == ()


def test_a_mask_moves_with_its_pixels(clip):
    """The mean color under an object's mask stays, although it moves by more than its own width."""
    target = clip.phrases[-1].target
    frames = [clip.frame(number) for number in (0, 60)]
    centres = [centre_of(each.masks[target]) for each in frames]
    colours = [each.pixels[each.masks[target]].mean(axis=0) for each in frames]
    assert np.linalg.norm(centres[1] - centres[0]) > 20
    assert np.abs(colours[1] - colours[0]).max() < 25
    surround = frames[1].pixels[frames[0].masks[target] & ~frames[1].masks.any(axis=0)].mean(axis=0)
    assert np.abs(surround - colours[0]).max() > 25


@pytest.mark.parametrize(("motion", "slowest", "fastest"), [("slow", 0.2, 1.6), ("fast", 1.4, 4.5)])
def test_objects_move_as_fast_as_the_motion_says(motion, slowest, fastest):
    scene = MovingScene(6, motion, size_yx=SIZE_YX, cut=False)
    masks = [scene.frame(number).masks for number in range(0, 12, 4)]
    steps = [
        np.linalg.norm(centre_of(later[index]) - centre_of(earlier[index])) / 4
        for earlier, later in pairwise(masks)
        for index in range(len(earlier))
        if index != scene.leaver
    ]
    assert slowest < np.median(steps) < fastest  # half the px of a frame of 640 px, and the pan


def test_nothing_but_the_noise_changes_in_a_still_clip():
    scene = MovingScene(4, "still", size_yx=SIZE_YX, cut=False)
    first, later = scene.frame(0), scene.frame(100)
    assert np.array_equal(first.masks, later.masks)
    difference = np.abs(first.pixels.astype(int) - later.pixels)
    assert 0 < difference.mean() < 4


def test_an_object_leaves_the_picture_and_comes_back(clip):
    seen = [clip.frame(number).masks[clip.leaver].any() for number in range(0, 210, 3)]
    gone = seen.index(False)
    assert seen[0]
    assert any(seen[gone:])


def test_objects_cross_and_the_nearer_one_hides_the_farther():
    scene = MovingScene(1, size_yx=SIZE_YX, cut=False)
    areas = np.array([scene.frame(number).masks.sum(axis=(1, 2)) for number in range(0, 210, 6)])
    others = [index for index in range(areas.shape[1]) if index != scene.leaver]
    assert any(areas[:, index].min() < 0.7 * areas[:, index].max() for index in others)


def test_phrases_name_visible_objects_and_no_place(clip):
    masks = clip.frame(0).masks
    assert clip.phrases
    for phrase in clip.phrases:
        assert masks[phrase.target].any()
        assert not phrase.cues & {"place", "relation"}


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"motion": "wild"}, {"size_yx": (100, 640)}])
def test_an_argument_out_of_its_range_is_refused(wrong):
    with pytest.raises(InputError, match="expected a seed of 0 or more"):
        MovingScene(**{"seed": 1, **wrong})


def test_a_missing_opencv_is_reported_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match=r"drawing moving scenes needs OpenCV.*\[camera\]"):
        MovingScene(1, size_yx=SIZE_YX)
