import dataclasses
import errno
import json
import os
import threading

import numpy as np
import pytest
from PIL import Image

from refdiff.camera.frame import TargetEvent
from refdiff.camera.recording import (
    MaskWriter,
    OverlayWriter,
    Recorder,
    ResultWriter,
    frame_record,
)
from tests.support.coco_rle import from_coco_rle
from tests.support.frames import made_result

EVENT = TargetEvent(kind="lost", phrase="the red mug", frame=3, reason="gone")


class Held:
    """A writer that is released one frame at a time."""

    def __init__(self, fails_at=None):
        self.written, self.events, self.ended = [], [], []
        self.fails_at = fails_at
        self.started, self.released = threading.Semaphore(0), threading.Semaphore(0)

    def write(self, result, events):
        self.started.release()
        assert self.released.acquire(timeout=10)
        if result.frame.number == self.fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written.append(result.frame.number)
        self.events += events

    def close(self):
        self.ended.append("closed")

    def abandon(self):
        self.ended.append("abandoned")


def test_a_slow_writer_loses_frames_that_are_counted_and_no_events():
    writer = Held()
    recorder = Recorder("video", writer)
    recorder.put(made_result(0))
    assert writer.started.acquire(timeout=10)
    for number in range(1, 20):
        recorder.put(made_result(number, events=(EVENT,)))
    assert recorder.dropped == 11  # eight wait
    for _ in range(9):
        writer.released.release()
    for _ in range(8):  # all that wait are being written
        assert writer.started.acquire(timeout=10)
    recorder.put(made_result(20))
    for _ in range(20):
        writer.released.release()
    recorder.close()
    assert writer.written == [*range(9), 20]
    assert len(writer.events) == 19
    assert (recorder.written, recorder.dropped, recorder.error, writer.ended) == (10, 11, None, ["closed"])


def test_a_writer_that_is_waited_for_gets_every_frame():
    writer = Held()
    for _ in range(40):
        writer.released.release()
    recorder = Recorder("results", writer, waits=True)
    for number in range(40):
        recorder.put(made_result(number))
    recorder.close()
    assert writer.written == list(range(40))


@pytest.mark.parametrize("waits", [False, True])
def test_a_full_disk_stops_the_recording_says_why_and_counts_the_rest(waits):
    writer = Held(fails_at=2)
    for _ in range(40):
        writer.released.release()
    recorder = Recorder("out.mp4", writer, waits=waits)
    for number in range(6):
        recorder.put(made_result(number))
    recorder.close()
    assert writer.written == [0, 1]
    assert writer.ended == ["abandoned"]
    assert recorder.error == "out.mp4: No space left on device; frames after the first 2 are missing"
    recorder.put(made_result(7))
    assert (recorder.written, recorder.dropped) == (2, 5)


def test_every_line_of_the_results_is_one_frame_with_a_mask_that_others_read(tmp_path):
    writer = ResultWriter(tmp_path / "results.jsonl")
    writer.write(made_result(0), ())
    writer.write(made_result(1, state="lost"), (EVENT,))
    first, second = map(
        json.loads, (tmp_path / "results.jsonl").read_text().splitlines()
    )  # before it is closed
    writer.close()
    assert (first["frame"], second["frame"]) == (0, 1)
    mask = from_coco_rle(first["targets"][0]["mask"])
    assert np.array_equal(mask, made_result(0).targets[0].mask)
    assert first["targets"][0]["box"] == [20, 10, 60, 40]
    assert (first["latency_ms"], first["targets"][0]["age_ms"]) == (10.0, 250.0)
    assert second["targets"][0]["mask"] is None
    assert second["targets"][0]["reason"] == "nothing was found"
    assert second["events"] == [{"kind": "lost", "phrase": "the red mug", "frame": 3, "reason": "gone"}]


def test_half_a_line_that_a_full_disk_took_is_removed(tmp_path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "results.jsonl"
    writer = ResultWriter(path)
    writer.write(made_result(0), ())
    whole = path.stat().st_size
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 100, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            writer.write(made_result(1), ())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    writer.abandon()
    assert path.stat().st_size == whole


def test_a_value_that_json_lacks_is_null():
    result = made_result(0)
    record = frame_record(result, ())
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
    odd = dataclasses.replace(result.targets[0], score=float("-inf"), evidence={"area_ratio": float("nan")})
    target = frame_record(dataclasses.replace(result, targets=(odd,)), ())["targets"][0]
    assert (target["score"], target["evidence"]) == (None, {"area_ratio": None})


def test_masks_are_written_by_frame_and_place(tmp_path):
    writer = MaskWriter(tmp_path)
    writer.write(made_result(5), ())
    writer.write(made_result(6, state="lost"), ())
    (path,) = tmp_path.iterdir()
    assert path.name == "00000005.0.png"
    assert np.array_equal(np.asarray(Image.open(path)) == 255, made_result(5).targets[0].mask)


def test_a_video_keeps_its_size_when_phrases_are_added():
    class Pictures:
        def __init__(self):
            self.sizes = []

        def write(self, image, at_s):
            self.sizes.append(image.shape)

        close = abandon = lambda self: None

    pictures = Pictures()
    writer, result = OverlayWriter(pictures, lambda: "30 fps"), made_result(0)
    writer.write(result, ())
    writer.write(dataclasses.replace(result, targets=result.targets * 3), (EVENT,))
    assert len(set(pictures.sizes)) == 1
