"""One phrase's mask over time: late answers, states, identity, refinements."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cv2", reason="opencv-python-headless is not installed")

from refdiff.camera.small_frame import FrameRing, iou
from refdiff.camera.target import Target
from refdiff.camera.verdict import TrackOptions
from refdiff.errors import InputError
from refdiff.runtime.prompt import read_logits, read_prompt
from refdiff.runtime.refinement import Refinement
from tests.support.moving_patch import SIZE_YX, MovingPatch, answer_of, frame_of, small_of, texture

NOTHING = np.zeros(SIZE_YX, np.bool_)


class Followed:
    """A target with its ring, and the frames it was shown."""

    def __init__(self, options=None, capacity=64):
        self.target, self.ring = Target("the disc", options), FrameRing(capacity)
        self.frame = None

    def show(self, frame):
        """Show a newer frame; return the kinds of the events."""
        self.frame, small = frame, small_of(frame)
        self.ring.append(small)
        return [event.kind for event in self.target.advance(small)]

    def show_all(self, frames):
        return [kind for frame in frames for kind in self.show(frame)]

    def answer(self, mask, number, **given):
        answer = answer_of(mask, **given)
        return [event.kind for event in self.target.ground(answer, number, self.ring)]

    @property
    def result(self):
        return self.target.result(self.frame)


@pytest.fixture(scope="module")
def moving():
    return MovingPatch().moving(30)


@pytest.fixture(scope="module")
def two_discs():
    """40 frames of two discs that stand still, and the mask of each."""
    patch, look = MovingPatch(6), texture(88, (69, 69))
    look[..., 1:] //= 4
    discs = (60.0, 60.0, 0.0, 1.0, None), (180.0, 110.0, 0.0, 1.0, look)
    drawn = [patch.draw(number, *discs) for number in range(40)]
    return [frame for frame, _ in drawn], drawn[0][1]


def test_before_the_first_answer_it_is_searching_and_wants_a_key_frame(moving):
    followed = Followed()
    followed.show(moving[0][0])
    assert followed.result.state == "searching"
    assert followed.result.mask is None
    assert followed.target.wants_key


def test_an_answer_for_the_newest_frame_is_seen_and_then_tracked(moving):
    frames, masks = moving
    followed = Followed()
    followed.show(frames[0])
    assert followed.answer(masks[0], 0, confidence=0.8) == ["found"]
    result = followed.result
    assert (result.state, result.origin, result.age_s, result.confidence) == ("seen", "grounded", 0.0, 0.8)
    assert np.array_equal(result.mask, masks[0])
    followed.show(frames[1])
    assert (followed.result.state, followed.result.origin, followed.result.key_number) == (
        "tracked",
        "tracked",
        0,
    )
    assert followed.result.age_s == pytest.approx(1 / 30)
    assert not followed.target.wants_key


def test_a_late_answer_is_followed_to_the_newest_frame(moving):
    frames, masks = moving
    followed = Followed()
    followed.show_all(frames[:25])
    assert followed.answer(masks[2], 2) == ["found"]
    result = followed.result
    assert result.state == "tracked"
    assert iou(result.mask, masks[24]) > 0.93
    assert result.age_s == pytest.approx(22 / 30)
    assert set(result.evidence) >= {
        "inliers",
        "area_ratio",
        "forward_backward_px",
        "scene_change",
        "supported",
    }


def test_an_answer_whose_frame_is_no_longer_kept_is_not_shown(moving):
    frames, masks = moving
    followed = Followed(capacity=8)
    followed.show_all(frames[:20])
    assert followed.answer(masks[2], 2) == ["failed"]
    assert followed.result.mask is None
    assert followed.result.state == "lost"
    assert "no longer kept" in followed.result.reason


def test_a_late_answer_does_not_replace_a_mask_that_is_well_followed(moving):
    frames, masks = moving
    followed = Followed(capacity=8)
    followed.show_all(frames[:4])
    followed.answer(masks[3], 3)
    followed.show_all(frames[4:20])
    assert followed.answer(masks[2], 2) == ["failed"]
    assert followed.result.state == "tracked"
    assert iou(followed.result.mask, masks[19]) > 0.93


def test_a_cut_loses_the_target_at_once_and_answers_from_before_it(moving):
    frames, masks = moving
    followed = Followed()
    followed.show_all(frames[:5])
    followed.answer(masks[4], 4)
    other = 255 - texture(50, blur=6.0) // 2
    kinds = followed.show(frame_of(other, 5))
    assert kinds in (["cut"], ["lost"])
    assert (followed.result.state, followed.result.mask) == ("lost", None)
    followed.answer(masks[4], 4)
    assert (followed.result.state, followed.result.mask) == ("lost", None)


def test_noise_after_an_answer_is_lost_at_every_frame(moving):
    frames, masks = moving
    followed = Followed()
    followed.show(frames[0])
    followed.answer(masks[0], 0)
    for number in range(1, 8):
        noise = np.random.default_rng(number).integers(0, 255, (*SIZE_YX, 3), dtype=np.uint8)
        followed.show(frame_of(noise, number))
        assert (followed.result.state, followed.result.mask) == ("lost", None)


def test_a_frame_that_is_spoilt_hides_the_mask_for_that_frame_only(moving):
    frames, masks = moving
    followed = Followed()
    followed.show(frames[0])
    followed.answer(masks[0], 0)
    assert followed.show(frame_of(np.full((*SIZE_YX, 3), 255, np.uint8), 1)) in (["lost"], ["cut"])
    assert followed.result.mask is None
    followed = Followed()
    followed.show(frames[0])
    followed.answer(masks[0], 0)
    turned = np.ascontiguousarray(frames[1].pixels[::-1, ::-1])  # no cut: the same colors
    assert followed.show(frame_of(turned, 1)) == ["lost"]
    assert followed.show(frames[2]) == ["found"]
    assert iou(followed.result.mask, masks[2]) > 0.93


def test_a_target_that_leaves_the_picture_is_lost_and_not_tracked_at_its_border():
    frames, masks = MovingPatch().moving(26, step_xy=(6.0, 0.0), start_xy=(150.0, 90.0), turn=0.0)
    followed = Followed()
    followed.show(frames[0])
    followed.answer(masks[0], 0)
    for frame, truth in zip(frames[1:], masks[1:], strict=True):
        followed.show(frame)
        if not truth.any():
            assert (followed.result.state, followed.result.mask) == ("lost", None)
    assert followed.target.wants_key


def test_an_old_mask_is_stale_and_then_lost_however_well_it_is_followed(two_discs):
    frames, (mask, _) = two_discs
    followed = Followed(TrackOptions(stale_after_s=0.5, lost_after_s=1.0))
    followed.show(frames[0])
    followed.answer(mask, 0)
    assert followed.show_all(frames[1:15]) == []
    assert followed.show_all(frames[15:25]) == ["stale"]
    assert "its key frame is" in followed.result.reason
    assert followed.result.mask is not None
    assert followed.show_all(frames[25:35]) == ["lost"]
    assert followed.result.mask is None


def test_an_answer_that_agrees_refreshes_the_mask(two_discs):
    frames, (mask, _) = two_discs
    followed = Followed()
    followed.show(frames[0])
    followed.answer(mask, 0)
    followed.show_all(frames[1:10])
    assert followed.answer(mask, 9) == []
    assert (followed.result.key_number, followed.result.state) == (9, "seen")


def test_a_different_answer_makes_the_mask_stale_and_the_second_one_switches(two_discs):
    frames, (first, second) = two_discs
    followed = Followed()
    followed.show(frames[0])
    followed.answer(first, 0)
    followed.show_all(frames[1:10])
    assert followed.answer(second, 9) == ["stale"]
    assert iou(followed.result.mask, first) > 0.9
    assert followed.result.reason == "the last key frame has another mask"
    followed.show_all(frames[10:20])
    assert followed.answer(second, 19) == ["switched"]
    assert iou(followed.result.mask, second) > 0.9


def test_two_things_that_fit_almost_equally_well_do_not_flicker(two_discs):
    frames, (first, second) = two_discs
    followed = Followed()
    followed.show(frames[0])
    followed.answer(first, 0)
    for number in range(1, 40):
        followed.show(frames[number])
        if number % 5 == 0:
            mask = second if number % 10 else first
            assert "switched" not in followed.answer(mask, number, confidence=0.9 + 0.05 * (number % 10 > 0))
        assert iou(followed.result.mask, first) > 0.9


def test_a_different_answer_that_leads_by_the_margin_switches_at_once(two_discs):
    frames, (first, second) = two_discs
    followed = Followed()
    followed.show(frames[0])
    followed.answer(first, 0, confidence=0.5)
    followed.show(frames[1])
    assert followed.answer(second, 1, confidence=0.8) == ["switched"]
    assert iou(followed.result.mask, second) > 0.9


def test_an_answer_without_a_mask_makes_it_stale_and_the_second_one_lost(two_discs):
    frames, (mask, _) = two_discs
    followed = Followed()
    followed.show(frames[0])
    followed.answer(mask, 0)
    reason = "confidence 0.1 is below 0.5"
    followed.show(frames[1])
    assert followed.answer(None, 1, reason=reason) == ["stale"]
    assert followed.result.mask is not None
    followed.show(frames[2])
    assert followed.answer(None, 2, reason=reason) == ["lost"]
    assert followed.result.mask is None
    assert reason in followed.result.reason


def test_a_first_answer_without_a_mask_gives_the_reason(two_discs):
    followed = Followed()
    followed.show(two_discs[0][0])
    followed.answer(None, 0, reason="no candidate passed")
    assert (followed.result.state, followed.result.mask) == ("lost", None)
    assert "no candidate passed" in followed.result.reason
    followed.answer(NOTHING, 0)
    assert "no mask" in followed.result.reason


def test_a_lost_target_is_found_at_once_by_an_answer_as_good_as_before(two_discs):
    frames, (first, second) = two_discs
    for confidence, image, found in ((0.6, True, True), (0.3, True, False), (0.85, False, False)):
        followed = Followed()
        followed.show(frames[0])
        followed.answer(first, 0, image=frames[0].pixels)
        followed.show(frame_of(np.zeros((*SIZE_YX, 3), np.uint8), 1))
        assert followed.result.state == "lost"
        followed.show_all([replace(frame, number=frame.number + 10) for frame in frames[2:4]])
        mask = first if image else second  # the second disc has other colors
        kinds = followed.answer(mask, 13, confidence=confidence, image=frames[3].pixels)
        assert kinds == (["found"] if found else [])
        assert (followed.result.mask is not None) is found
        if not found:  # the next answer decides
            followed.show(replace(frames[4], number=14))
            assert followed.answer(mask, 14, confidence=confidence, image=frames[4].pixels) == ["found"]


def test_a_result_of_a_frame_that_was_not_followed_has_no_mask(moving):
    frames, masks = moving
    followed = Followed()
    followed.show(frames[0])
    followed.answer(masks[0], 0)
    result = followed.target.result(frames[1])
    assert (result.state, result.mask) == ("lost", None)
    assert followed.show(frames[1]) == []
    assert followed.show(frames[0]) == []  # older: changes nothing
    assert followed.target.result(frames[1]).state == "tracked"


def test_without_following_a_mask_is_shown_on_its_own_frame_only(moving):
    frames, masks = moving
    followed = Followed(TrackOptions(level="off"))
    followed.show(frames[0])
    followed.answer(masks[0], 0)
    assert followed.result.state == "seen"
    followed.show(frames[1])
    assert (followed.result.state, followed.result.mask) == ("lost", None)
    followed.answer(masks[0], 0)
    assert followed.result.mask is None


def refinement_of(*masks):
    logits = np.zeros((len(masks), 16, 16), np.float32)
    return Refinement(masks=np.stack(masks), predicted_iou=np.ones(len(masks), np.float32), low_res=logits)


def test_the_prompt_for_sam_is_a_point_inside_unless_more_is_asked_for(moving):
    frames, masks = moving
    followed = Followed(TrackOptions(level="sam"))
    followed.show(frames[0])
    followed.answer(masks[0], 0)
    given = followed.target.refine_prompt().arguments()
    ((x, y),) = given["points"]
    assert masks[0][int(y), int(x)]
    assert (given["box"], given["mask"]) == (None, None)


def test_a_mask_that_sam_itself_does_not_believe_in_says_nothing(moving):
    frames, masks = moving
    followed = Followed(TrackOptions(level="sam"))
    followed.show(frames[0])
    followed.answer(masks[0], 0)
    followed.target.refine_prompt()
    doubtful = replace(refinement_of(~masks[0]), predicted_iou=np.array([0.2], np.float32))
    assert followed.target.refined(doubtful, 0, followed.ring) == []
    assert "sam_iou" not in followed.result.evidence
    assert followed.result.state == "seen"


def test_a_prompt_with_box_and_mask_is_one_that_refine_takes(moving):
    frames, masks = moving
    followed = Followed(TrackOptions(level="sam", prompt="all"))
    followed.show(frames[0])
    assert followed.target.refine_prompt() is None
    followed.answer(masks[0], 0)
    prompt = followed.target.refine_prompt()
    given = prompt.arguments()
    read_prompt(SIZE_YX, given["box"], given["points"], None)
    assert given["mask"] is None
    followed.target.refined(refinement_of(masks[0]), 0, followed.ring)
    logits = read_logits(followed.target.refine_prompt().logits, 16)
    y, x = np.unravel_index(int(np.argmax(logits)), logits.shape)
    assert masks[0][int((y + 0.5) * 15), int((x + 0.5) * 15)]
    assert Followed(TrackOptions(level="points")).target.refine_prompt() is None


def test_a_refined_mask_that_agrees_is_followed_from_then_on(moving):
    frames, masks = moving
    followed = Followed(TrackOptions(level="sam"))
    followed.show(frames[0])
    smaller = masks[0].copy()
    smaller[:, :38] = False
    followed.answer(smaller, 0)
    followed.show(frames[1])
    assert followed.target.refine_prompt().number == 1
    followed.target.refined(refinement_of(NOTHING, masks[1], ~NOTHING), 1, followed.ring)
    assert (followed.result.origin, followed.result.state, followed.result.key_number) == (
        "refined",
        "tracked",
        0,
    )
    assert iou(followed.result.mask, masks[1]) > 0.99
    followed.show_all(frames[2:8])
    assert iou(followed.result.mask, masks[7]) > 0.93
    assert followed.result.evidence["sam_iou"] > 0.7


def test_a_late_refinement_is_followed_to_the_newest_frame(moving):
    frames, masks = moving
    followed = Followed(TrackOptions(level="sam"))
    followed.show(frames[0])
    followed.answer(masks[0], 0)
    followed.target.refine_prompt()
    followed.show_all(frames[1:6])
    followed.target.refined(refinement_of(masks[0]), 0, followed.ring)
    assert iou(followed.result.mask, masks[5]) > 0.93


def test_a_mask_that_sam_contradicts_is_stale(two_discs):
    frames, (first, second) = two_discs
    followed = Followed(TrackOptions(level="sam"))
    followed.show(frames[0])
    followed.answer(first, 0)
    followed.target.refine_prompt()
    kinds = followed.target.refined(refinement_of(second), 0, followed.ring)
    assert [event.kind for event in kinds] == ["stale"]
    assert iou(followed.result.mask, first) == 1.0
    assert "SAM" in followed.result.reason


@pytest.mark.parametrize(
    "wrong", [{"level": "points and sam"}, {"prompt": "box"}, {"stale_after_s": 0}, {"cut": float("nan")}]
)
def test_options_out_of_their_range_are_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        TrackOptions(**wrong)
