"""Masks followed by points: where they go, what they are worth, and that they are not trusted wrongly."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")

from refdiff.camera.motion import MaskMotion
from refdiff.camera.small_frame import iou
from refdiff.camera.verdict import TrackOptions, judge
from tests.support.moving_patch import SIZE_YX, MovingPatch, frame_of, small_of, texture

OPTIONS = TrackOptions()


def verdict_of(motion, followed):
    """The verdict of one step; a step that failed is never tracked."""
    verdict = judge(motion.evidence, motion.evidence.inliers, OPTIONS)
    assert followed or verdict.state == "lost"
    return verdict


def test_a_mask_follows_what_moves_and_turns():
    frames, masks = MovingPatch().moving(26)
    motion = MaskMotion(small_of(frames[0]), masks[0])
    for frame, truth in zip(frames[1:], masks[1:], strict=True):
        assert verdict_of(motion, motion.step(small_of(frame))).state == "tracked"
        assert iou(motion.full_mask(), truth) > 0.93
    assert iou(masks[0], masks[-1]) < 0.1


@settings(max_examples=12)
@given(
    turn=st.floats(-4, 4),
    scale=st.floats(0.97, 1.03),
    dx=st.floats(-5, 5),
    dy=st.floats(-5, 5),
    seed=st.integers(0, 5),
)
def test_the_map_is_the_motion_of_all_steps_together(turn, scale, dx, dy, seed):
    patch, x, y = MovingPatch(seed), 120.0, 90.0
    first, masks = patch.draw(0, (x, y, 0.0, 1.0, None))
    motion = MaskMotion(small_of(first), masks[0])
    for step in (1, 2, 3):
        frame, _ = patch.draw(step, (x + step * dx, y + step * dy, step * turn, scale**step, None))
        assert motion.step(small_of(frame))
    angle, size = np.deg2rad(3 * turn), scale**3
    cos, sin = size * np.cos(angle), size * np.sin(angle)
    for corner in np.array([(30, 0), (0, 30), (-30, -30)]):
        wanted = np.array([x + 3 * dx, y + 3 * dy]) + np.array([[cos, -sin], [sin, cos]]) @ corner
        found = motion.to_newest @ np.array([x + corner[0], y + corner[1], 1.0])
        assert np.abs(found[:2] - wanted).max() < 1.5


def test_the_full_mask_has_the_size_of_the_frame():
    table = cv2.resize(texture(3), (1280, 960))
    pixels = [np.roll(table, 6 * step, axis=1) for step in range(3)]
    mask = np.zeros((960, 1280), np.bool_)
    mask[300:600, 400:800] = True
    small = [small_of(frame_of(each, number)) for number, each in enumerate(pixels)]
    motion = MaskMotion(small[0], mask)
    assert motion.step(small[1])
    assert motion.step(small[2])
    assert iou(motion.full_mask(), np.roll(mask, 12, axis=1)) > 0.98


@pytest.mark.slow
def test_the_part_in_front_is_taken_out_and_comes_back():
    """Points do not move over to what passes in front, although it has more of them in the end."""
    patch, look = MovingPatch(2), texture(77, (69, 69))
    drawn = [
        patch.draw(step, (110.0, 90.0, 0.0, 1.0, None), (10.0 + 4.0 * step, 90.0, 0.0, 1.0, look))
        for step in range(50)
    ]
    motion = MaskMotion(small_of(drawn[0][0]), drawn[0][1][0])
    states = []
    for frame, masks in drawn[1:]:
        verdict = verdict_of(motion, motion.step(small_of(frame)))
        states.append(verdict.state)
        if verdict.state == "tracked":
            assert iou(motion.full_mask(), masks[0]) > 0.7
    assert "tracked" not in states[22:27]  # nearly or fully hidden
    assert states[0] == "tracked"


def test_a_mask_that_leaves_the_picture_is_clipped_and_then_lost():
    frames, masks = MovingPatch().moving(30, step_xy=(5.0, 0.0), start_xy=(150.0, 90.0), turn=0.0)
    motion = MaskMotion(small_of(frames[0]), masks[0])
    states = []
    for frame, truth in zip(frames[1:], masks[1:], strict=True):
        verdict = verdict_of(motion, motion.step(small_of(frame)))
        states.append(verdict.state)
        if verdict.state == "tracked":
            assert iou(motion.full_mask(), truth) > 0.8
        if not truth.any():
            assert verdict.state == "lost"
    assert "lost" in states
    assert states[0] == "tracked"


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_never_tracked(seed):
    frames, masks = MovingPatch().moving(1)
    motion = MaskMotion(small_of(frames[0]), masks[0])
    rng = np.random.default_rng(seed)
    for number in range(1, 6):
        noise = rng.integers(0, 255, (*SIZE_YX, 3), dtype=np.uint8)
        assert verdict_of(motion, motion.step(small_of(frame_of(noise, number)))).state == "lost"


def test_a_frame_of_another_size_cannot_be_followed_to():
    frames, masks = MovingPatch().moving(1)
    motion = MaskMotion(small_of(frames[0]), masks[0])
    assert not motion.step(small_of(frame_of(texture(0, (120, 240)), 1)))
    assert iou(motion.full_mask(), masks[0]) == 1.0


def grey_disc(value):
    return np.full((69, 69, 3), value, np.uint8)


GREY_TABLE = np.full((*SIZE_YX, 3), 90, np.uint8)
CHECKS = np.repeat(((np.indices(SIZE_YX) // 8).sum(axis=0) % 2 * 180 + 30).astype(np.uint8)[..., None], 3, 2)


@pytest.mark.parametrize(
    ("look", "table"),
    [
        (grey_disc(90), GREY_TABLE),  # nothing to be seen at all
        (grey_disc(200), GREY_TABLE),  # only a contour
        (grey_disc(200), None),  # even, on a textured table that stands still
        (CHECKS[:69, :69], CHECKS),  # the same squares everywhere
    ],
)
def test_what_has_no_texture_of_its_own_is_followed_rightly_or_not_trusted(look, table):
    patch = MovingPatch(4, look=look, table=table)
    frames, masks = patch.moving(20, turn=0.0)
    motion = MaskMotion(small_of(frames[0]), masks[0])
    for frame, truth in zip(frames[1:], masks[1:], strict=True):
        verdict = verdict_of(motion, motion.step(small_of(frame)))
        assert verdict.state != "tracked" or iou(motion.full_mask(), truth) > 0.6


@pytest.mark.parametrize("thickness", [1, 2])
def test_a_thin_mask_of_a_large_frame_is_followed_or_lost(thickness):
    table = cv2.resize(texture(5), (1920, 1080))
    mask = np.zeros((1080, 1920), np.bool_)
    mask[500 : 500 + thickness, 400:1400] = True
    small = [small_of(frame_of(np.roll(table, 6 * step, axis=0), step)) for step in range(3)]
    motion = MaskMotion(small[0], mask)
    for step in (1, 2):
        verdict = verdict_of(motion, motion.step(small[step]))
        if verdict.state == "tracked":
            rows = np.nonzero(motion.full_mask())[0]
            assert abs(rows.mean() - (500 + 6 * step)) < 3
