"""Small frames: their size, how much two differ, and the ring of the last ones."""

import sys
import threading

import numpy as np
import pytest

pytest.importorskip("cv2", reason="opencv-python-headless is not installed")

from refdiff.camera.small_frame import LONGER_SIDE, FrameRing, scene_change, shrink
from refdiff.errors import InputError, MissingDependencyError
from tests.support.moving_patch import frame_of, texture


def small(number, seed=0, size_yx=(60, 80)):
    return shrink(frame_of(texture(seed, size_yx), number))


def test_a_large_frame_is_made_small_and_a_small_one_keeps_its_size():
    large = small(7, size_yx=(540, 960))
    assert large.grey.shape == (360, LONGER_SIDE)
    assert large.scale == 1.5
    assert large.size_yx == (540, 960)
    assert large.number == 7
    kept = small(8)
    assert kept.grey.shape == (60, 80)
    assert kept.scale == 1.0


def test_frames_differ_by_their_colors_and_by_their_size():
    dark, bright = (shrink(frame_of(np.full((60, 80, 3), value, np.uint8), value)) for value in (10, 200))
    assert scene_change(dark, dark) == 0.0
    assert scene_change(dark, bright) == 1.0
    assert scene_change(small(0), small(1, size_yx=(60, 100))) == 1.0
    assert scene_change(small(0), small(1)) < 0.1


def test_the_ring_returns_frames_from_a_number_on_and_nothing_once_it_is_gone():
    ring = FrameRing(3)
    assert ring.newest is None
    for number in (1, 2, 4, 5):
        ring.append(small(number))
    assert [each.number for each in ring.since(4)] == [4, 5]
    assert [each.number for each in ring.since(2)] == [2, 4, 5]
    for gone in (1, 3, 6):
        assert ring.since(gone) == []
    assert ring.newest.number == 5


def test_the_ring_is_read_while_it_is_written():
    ring, frame, wrong = FrameRing(16), small(0), []
    frames = [type(frame)(**{**vars(frame), "number": number}) for number in range(2000)]

    def read():
        for _ in range(500):
            newest = ring.newest
            numbers = [each.number for each in ring.since(newest.number)] if newest else []
            wrong.extend(numbers != list(range(numbers[0], numbers[0] + len(numbers))) for _ in numbers[:1])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for each in frames:
        ring.append(each)
    for reader in readers:
        reader.join()
    assert not any(wrong)
    assert len(ring.since(1984)) == 16


def test_a_ring_of_one_frame_is_refused():
    with pytest.raises(InputError, match="got a ring of 1 frames, expected 2 or more"):
        FrameRing(1)


def test_a_missing_opencv_is_reported_with_what_to_install(monkeypatch):
    frame = frame_of(texture(0, (20, 20)), 0)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match=r"following masks needs OpenCV.*\[camera\]"):
        shrink(frame)
