import json
from types import SimpleNamespace

import numpy as np
import pytest

from refdiff.camera.frame import Frame, FrameResult, TargetResult
from refdiff.errors import InputError
from refdiff.ros.messages import (
    check_count,
    fill_detections,
    health,
    label_image,
    result_record,
    shown_mask,
    stamp_s,
)

HEADER = SimpleNamespace(stamp=SimpleNamespace(sec=12, nanosec=345), frame_id="camera")
LEFT = np.zeros((4, 6), dtype=np.bool_)
LEFT[1:3, 0:2] = True
ALL = np.ones((4, 6), dtype=np.bool_)


def target(phrase="the mug", mask=LEFT, state="seen", confidence=0.5):
    return TargetResult(
        phrase=phrase, version=0, state=state, mask=mask, confidence=confidence, score=float("-inf")
    )


def result(*targets):
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    frame = Frame(source="/image", number=3, pixels=pixels, captured_s=1.0, wall_s=2.0, header=HEADER)
    return FrameResult(frame=frame, targets=targets, latency_s=0.5)


@pytest.mark.parametrize("state", ["seen", "tracked"])
def test_a_mask_that_can_be_trusted_is_shown(state):
    np.testing.assert_array_equal(shown_mask(target(state=state), (4, 6), stale_masks=False), LEFT)


def test_a_stale_mask_is_shown_where_it_is_wanted_only():
    assert not shown_mask(target(state="stale"), (4, 6), stale_masks=False).any()
    np.testing.assert_array_equal(shown_mask(target(state="stale"), (4, 6), stale_masks=True), LEFT)


def test_without_a_mask_nothing_is_shown():
    shown = shown_mask(target(mask=None, state="lost"), (4, 6), stale_masks=True)
    assert shown.shape == (4, 6)
    assert not shown.any()


def test_labels_count_phrases_from_1_and_a_small_mask_lies_on_a_large_one():
    for masks, inside, outside in (([LEFT, ALL], 1, 2), ([ALL, LEFT], 2, 1)):
        labels = label_image(masks, (4, 6))
        assert labels.dtype == np.uint8
        assert set(labels[LEFT]) == {inside}
        assert set(labels[~LEFT]) == {outside}
    assert not label_image([np.zeros((4, 6), dtype=np.bool_)], (4, 6)).any()


def test_more_phrases_than_labels_are_refused():
    check_count(["x"] * 255)
    with pytest.raises(InputError, match="got 256 phrases, expected at most 255"):
        check_count(["x"] * 256)


def test_a_record_has_the_header_and_is_json():
    record = json.loads(json.dumps(result_record(result(target()), HEADER), allow_nan=False))
    assert record["header"] == {"stamp": {"sec": 12, "nanosec": 345}, "frame_id": "camera"}
    assert record["latency_ms"] == 500
    assert record["targets"][0]["phrase"] == "the mug"
    assert record["targets"][0]["box"] == [0, 1, 2, 3]


def test_a_repeatable_record_has_no_times_of_the_run():
    record = result_record(result(target()), HEADER, repeatable=True)
    assert not {"captured_s", "wall_s", "latency_ms"} & set(record)


def test_a_stamp_is_read_in_seconds():
    assert stamp_s(HEADER) == pytest.approx(12.000000345, abs=1e-12)


class Detection:
    def __init__(self):
        self.bbox = SimpleNamespace(center=SimpleNamespace(position=SimpleNamespace()))
        self.results = []


VISION = SimpleNamespace(
    Detection2D=Detection,
    ObjectHypothesisWithPose=lambda: SimpleNamespace(hypothesis=SimpleNamespace()),
)
"""The fields of vision_msgs 4, which is on no package index."""


def test_detections_are_the_boxes_of_masks_to_act_on():
    found = result(target(), target("the cup", mask=None, state="lost"), target("the pot", state="stale"))
    array = fill_detections(SimpleNamespace(detections=[]), found, HEADER, VISION, stale_masks=False)
    assert array.header is HEADER
    (only,) = array.detections
    assert (only.id, only.header) == ("1", HEADER)
    assert only.results[0].hypothesis == SimpleNamespace(class_id="the mug", score=0.5)
    assert (only.bbox.center.position.x, only.bbox.center.position.y) == (1.0, 2.0)
    assert (only.bbox.size_x, only.bbox.size_y) == (2.0, 2.0)


def test_a_detection_without_a_calibrated_confidence_has_score_0():
    found = result(target(confidence=None))
    array = fill_detections(SimpleNamespace(detections=[]), found, HEADER, VISION, stale_masks=False)
    assert array.detections[0].results[0].hypothesis.score == 0.0


@pytest.mark.parametrize(
    ("given", "level", "said"),
    [
        ({}, 0, "tracking"),
        ({"states": {}}, 0, "waiting for the first image"),
        ({"states": {"the mug": "lost", "the cup": "seen"}}, 1, "the mug is lost"),
        ({"states": {"the mug": "stale"}}, 1, "the mug is stale"),
        ({"silent_s": 9.0}, 1, "no image for 9 s"),
        ({"silent_s": 9.0, "paused": True}, 0, "paused"),
        ({"fault": "got encoding 'x'", "silent_s": 9.0}, 2, "got encoding 'x'"),
    ],
)
def test_the_worst_of_what_is_known_decides_the_level(given, level, said):
    usual = {"states": {"the mug": "seen"}, "silent_s": 0.1, "limit_s": 5.0, "fault": None, "paused": False}
    found = health(**{**usual, **given})
    assert found[0] == level
    assert said in found[1]
