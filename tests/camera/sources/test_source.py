"""Sources read by real reader processes."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refdiff.camera.frame import Frame, SourceCounts
from refdiff.camera.pattern import draw_pattern, read_pattern_number
from refdiff.camera.sources.address import parse_source
from refdiff.camera.sources.reader_source import ReaderSource
from refdiff.camera.sources.source import SourceOptions, build_request, open_source
from refdiff.errors import InputError, SourceError

SMALL = (64, 32)
PATIENCE_S = 30.0


def read_all(source: ReaderSource) -> list[Frame]:
    frames = []
    while not source.ended:
        frame = source.read(PATIENCE_S)
        if frame is not None:
            frames.append(frame)
    return frames


def balance(counts: SourceCounts) -> int:
    return counts.captured - counts.delivered - sum(counts.dropped.values()) - counts.waiting


def test_every_frame_of_a_folder_comes_once_in_natural_order_whatever_its_size(tmp_path: Path) -> None:
    sizes = [(32, 64), (32, 64), (96, 128), (40, 80)]
    for number, size in zip((1, 2, 10, 11), sizes, strict=True):
        Image.fromarray(draw_pattern(number, size)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame3.png").write_bytes(b"no image")
    with open_source(str(tmp_path)) as source:
        frames = read_all(source)
        assert [read_pattern_number(frame.pixels) for frame in frames] == [1, 2, 10, 11]
        assert [frame.number for frame in frames] == [1, 2, 4, 5]
        assert [frame.size_yx for frame in frames] == sizes
        assert not frames[0].pixels.flags.writeable
        counts = source.counts()
        assert counts.dropped == {"damaged": 1}
        assert balance(counts) == 0
        assert not source.live
        assert [event.kind for event in source.take_events()] == ["opened", "resized", "resized", "ended"]
        assert source.read(0.0) is None


@pytest.mark.slow
def test_a_reader_that_is_killed_costs_no_frame_of_a_file() -> None:
    options = SourceOptions(frames="every", size_xy=SMALL, max_frames=60, backoff_s=(0.01, 0.02))
    with open_source("pattern", options) as source:
        shown = []
        while not source.ended:
            frame = source.read(PATIENCE_S)
            if frame is None:
                continue
            shown.append(read_pattern_number(frame.pixels))
            if len(shown) in (10, 30):
                os.kill(source.reader_pid or 0, signal.SIGKILL)
        assert shown == list(range(60))
        assert source.counts().dropped == {}
        causes = [event.cause for event in source.take_events() if event.kind == "failed"]
        assert causes == ["crashed", "crashed"]


@pytest.mark.slow
def test_newest_hands_out_the_newest_frame_and_counts_the_others() -> None:
    options = SourceOptions(size_xy=SMALL, rate=200, max_frames=40)
    with open_source("pattern", options) as source:
        assert source.live
        first = source.read(PATIENCE_S)
        assert first is not None
        while source.counts().captured < 40:
            source.read(0.0)
        counts = source.counts()
        assert balance(counts) == 0
        frames = read_all(source)
        assert not frames or frames[-1].number == 40
        assert balance(source.counts()) == 0


def test_frames_that_wait_when_a_source_is_closed_are_counted() -> None:
    source = open_source("pattern", SourceOptions(frames="every", size_xy=SMALL))
    assert source.read(PATIENCE_S) is not None
    source.close()
    source.close()
    assert source.read(1.0) is None
    assert source.ended
    assert balance(source.counts()) == 0
    assert source.counts().waiting == 0


def test_raw_frames_of_a_command_are_read_and_a_short_last_one_is_counted() -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(range(24)) * 3 + b'short')"
    options = SourceOptions(frames="every", size_xy=(4, 2), pixel_format="bgr24", open_attempts=1)
    options = SourceOptions(**{**vars(options), "reconnect_attempts": 1, "backoff_s": (0.01, 0.01)})
    with open_source(f'cmd:{sys.executable} -c "{program}"', options) as source:
        frames = [source.read(PATIENCE_S) for _ in range(3)]
        expected = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[..., ::-1]
        for frame in frames:
            assert frame is not None
            np.testing.assert_array_equal(frame.pixels, expected)


@pytest.mark.slow
def test_a_source_that_never_opens_names_the_cause_the_cure_and_no_password() -> None:
    options = SourceOptions(open_attempts=2, backoff_s=(0.01, 0.02))
    with open_source("tcp://user:hunter22@127.0.0.1:9", options) as source:
        with pytest.raises(
            SourceError, match=r"tcp://\*\*\*@127.0.0.1:9 cannot be opened.*tried 2 times.*check"
        ):
            source.read(PATIENCE_S)
        events = source.take_events()
        assert [event.cause for event in events if event.kind == "failed"] == ["refused", "refused"]
        assert "hunter22" not in repr(events) + repr(source)


def test_rendered_scenes_come_with_phrases_for_them() -> None:
    pytest.importorskip("cv2")
    options = SourceOptions(frames="every", size_xy=(160, 120), max_frames=2)
    with open_source("scenes:3", options) as source:
        assert [frame.size_yx for frame in read_all(source)] == [(120, 160)] * 2
        (opened, _) = source.take_events()
        assert re.match(r"rendered scenes, 160x120 px, with '[a-z ]+'", opened.reason)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("pattern", SourceOptions(size_xy=(0, 10))),
        ("pattern", SourceOptions(size_xy=(16, 16))),
        ("pattern", SourceOptions(rate=0.0)),
        ("pattern", SourceOptions(backoff_s=(3.0, 1.0))),
        ("cmd:cat", SourceOptions()),
        ("cmd:cat", SourceOptions(size_xy=(4, 2), pixel_format="rgb48")),
        ("cmd:cat", SourceOptions(size_xy=(3, 2), pixel_format="nv12")),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_before_a_process_starts(
    text: str, options: SourceOptions
) -> None:
    with pytest.raises(InputError, match="expected"):
        open_source(text, options)


def test_credentials_of_ffmpeg_s_options_stand_in_no_text() -> None:
    options = SourceOptions(
        open_options={"headers": "Authorization: Basic c2VjcmV0", "rtsp_transport": "udp"}
    )
    request = build_request(parse_source("rtsp://me:hunter22@cam/1"), options)
    assert request["secrets"] == ["me%3Ahunter22", "me:hunter22", "hunter22", "Authorization: Basic c2VjcmV0"]
    assert "c2VjcmV0" not in repr(options)
