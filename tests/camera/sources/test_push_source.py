import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.camera.sources.push_source import PushSource
from refdiff.errors import InputError, MissingDependencyError, SourceError

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def test_a_frame_comes_back_with_its_header_and_times():
    source = PushSource("camera", clock=lambda: 7.0)
    header = object()
    assert source.push(PIXELS, wall_s=9.0, pts_s=3.0, header=header) == 0
    frame = source.read(0)
    assert frame is not None
    assert (frame.source, frame.number, frame.captured_s, frame.wall_s, frame.pts_s) == ("camera", 0, 7, 9, 3)
    assert frame.header is header
    np.testing.assert_array_equal(frame.pixels, PIXELS)


def test_pixels_are_a_copy_that_cannot_be_written():
    source = PushSource("camera")
    buffer = PIXELS.copy()
    source.push(buffer)
    buffer[:] = 0  # a driver reuses its buffer
    frame = source.read(0)
    assert frame is not None
    np.testing.assert_array_equal(frame.pixels, PIXELS)
    assert not frame.pixels.flags.writeable


def test_newest_keeps_the_last_frame_and_counts_the_others():
    source = PushSource("camera")
    for _ in range(5):
        source.push(PIXELS)
    frame = source.read(0)
    assert frame is not None
    assert frame.number == 4
    assert source.read(0) is None
    counts = source.counts()
    assert (counts.captured, counts.delivered, dict(counts.dropped)) == (5, 1, {"newest": 4})


def test_every_keeps_the_oldest_frames_and_counts_those_that_find_it_full():
    source = PushSource("camera", policy="every", capacity=3)
    assert [source.push(PIXELS) for _ in range(5)] == [0, 1, 2, 3, 4]
    numbers = [frame.number for _ in range(3) if (frame := source.read(0)) is not None]
    assert numbers == [0, 1, 2]
    assert dict(source.counts().dropped) == {"full": 2}


def test_a_dropped_frame_is_never_decoded():
    decoded = []

    def decode(name):
        decoded.append(name)
        return PIXELS

    source = PushSource("camera")
    for name in range(4):
        source.push(lambda name=name: decode(name))
    source.read(0)
    assert decoded == [3]


def fail(text="got encoding 'x'"):
    raise InputError(text)


def test_what_cannot_be_decoded_is_counted_and_explained_once():
    source = PushSource("camera", policy="every")
    for _ in range(3):
        source.push(fail)
    source.push(PIXELS)
    source.push(fail)
    frame = source.read(0)
    assert frame is not None
    assert frame.number == 3
    assert source.read(0) is None
    assert dict(source.counts().dropped) == {"undecodable": 4}
    assert [(event.kind, event.reason) for event in source.take_events()] == [
        ("failed", "got encoding 'x'"),
        ("opened", "camera: 4x2 px"),
        ("failed", "got encoding 'x'"),
    ]
    assert source.take_events() == []


def test_a_package_that_decoding_needs_is_no_dropped_frame():
    def decode():
        raise MissingDependencyError("bayer_rggb8 needs OpenCV")

    source = PushSource("camera")
    source.push(decode)
    with pytest.raises(SourceError, match="camera: bayer_rggb8 needs OpenCV"):
        source.read(0)


def test_a_change_of_size_is_an_event():
    source = PushSource("camera", policy="every")
    source.push(PIXELS)
    source.push(PIXELS[:1])
    source.read(0)
    source.read(0)
    assert [(event.kind, event.reason) for event in source.take_events()] == [
        ("opened", "camera: 4x2 px"),
        ("resized", "camera: 4x1 px"),
    ]


def test_a_finished_source_ends_when_its_frames_are_read():
    source = PushSource("bag", policy="every", live=False)
    source.push(PIXELS)
    source.finish()
    assert source.push(PIXELS) is None
    assert not source.ended
    assert source.read(0) is not None
    assert source.ended
    assert source.read(60) is None  # at once


def test_a_closed_source_wakes_its_reader_and_counts_what_waited():
    source = PushSource("camera")
    read = []
    thread = threading.Thread(target=lambda: read.append(source.read(60)))
    thread.start()
    source.close()
    thread.join(30)
    assert read == [None]
    other = PushSource("camera")
    other.push(PIXELS)
    other.close()
    other.close()
    assert other.read(0) is None
    assert dict(other.counts().dropped) == {"closed": 1}


def test_a_reader_is_woken_by_a_frame():
    source = PushSource("camera")
    read = []
    thread = threading.Thread(target=lambda: read.append(source.read(60)))
    thread.start()
    source.push(PIXELS)
    thread.join(30)
    assert read[0].number == 0


@pytest.mark.parametrize("pixels", [PIXELS[0], PIXELS.astype(float), PIXELS[:0], [1]])
def test_what_is_no_picture_is_refused_where_it_is_pushed(pixels):
    with pytest.raises(InputError, match="camera"):
        PushSource("camera").push(pixels)


def test_unknown_options_are_refused():
    with pytest.raises(InputError, match="got policy 'oldest', expected one of: newest, every"):
        PushSource("camera", policy="oldest")
    with pytest.raises(InputError, match="got a capacity of 0 frames"):
        PushSource("camera", policy="every", capacity=0)


@given(st.lists(st.sampled_from(["push", "bad", "read"])), st.sampled_from(["newest", "every"]))
def test_every_frame_is_delivered_once_and_in_order_or_counted_as_dropped(steps, policy):
    source = PushSource("camera", policy=policy, capacity=2)
    numbers = []
    for step in steps:
        if step == "read":
            if (frame := source.read(0)) is not None:
                numbers.append(frame.number)
        else:
            source.push(PIXELS if step == "push" else fail)
    source.close()
    counts = source.counts()
    assert numbers == sorted(set(numbers))
    assert counts.delivered == len(numbers)
    assert counts.captured == counts.delivered + sum(counts.dropped.values())
