import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff.camera.video_file import VideoFile, Window, fit_image, trim_fragments
from refdiff.errors import MissingDependencyError
from tests.support.frames import made_frame

av = pytest.importorskip("av")


def read_times(path):
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def test_a_video_has_every_frame_at_its_time(tmp_path):
    video = VideoFile(tmp_path / "out.mp4")
    times = [5.0, 5.04, 5.5, 7.25]
    for number, at in enumerate(times):
        video.write(made_frame(number).pixels, at)
    video.close()
    video.close()
    assert np.allclose(read_times(tmp_path / "out.mp4"), [0, 0.04, 0.5, 2.25], atol=0.002)


def test_frames_of_another_size_are_fitted_into_the_video(tmp_path):
    video = VideoFile(tmp_path / "out.mp4")
    for number, size in enumerate([(97, 129), (480, 640), (10, 10)]):
        video.write(made_frame(number, size).pixels, number)
    video.close()
    with av.open(str(tmp_path / "out.mp4")) as container:
        sizes = {(frame.height, frame.width) for frame in container.decode(video=0)}
    assert sizes == {(98, 130)}


def test_what_is_fitted_keeps_its_shape():
    image = np.full((100, 50, 3), 9, dtype=np.uint8)
    fitted = fit_image(image, (100, 50))
    assert fitted.shape == (50, 100, 3)
    assert (fitted[:, :25] == 9).all() and not fitted[:, 25:].any()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_an_oserror_that_says_so(tmp_path):
    (tmp_path / "out.mp4").symlink_to("/dev/full")
    video = VideoFile(tmp_path / "out.mp4")
    with pytest.raises(OSError, match="No space left"):
        for number in range(400):
            video.write(np.random.default_rng(number).integers(0, 256, (96, 128, 3), np.uint8), number)
    video.abandon()


def test_a_fragment_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "out.mp4"
    video = VideoFile(path)
    for number in range(100):
        video.write(np.random.default_rng(number).integers(0, 256, (96, 128, 3), np.uint8), number / 30)
    video.close()
    content = path.read_bytes()
    path.write_bytes(content[: int(0.8 * len(content))])
    trim_fragments(path)
    assert 60 <= len(read_times(path)) < 100


KILLED = """
import sys
from pathlib import Path
from refdiff.camera.video_file import VideoFile
from tests.support.frames import made_frame

video = VideoFile(Path(sys.argv[1]))
for number in range(10_000):
    video.write(made_frame(number).pixels, number / 30)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_video_of_a_killed_process_plays_up_to_the_last_second(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "out.mp4")], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if int(line) >= 100:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    times = read_times(tmp_path / "out.mp4")
    assert len(times) >= 100 - 35
    assert np.allclose(np.diff(times), 1 / 30, atol=0.002)


def test_a_window_gets_whole_frames_and_closes_its_process(tmp_path):
    shown = tmp_path / "{width}x{height}.rgb"
    window = Window(
        "t",
        [
            sys.executable,
            "-c",
            "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())",
            str(shown),
        ],
    )
    frames = [made_frame(number, (20, 30)).pixels for number in range(3)]
    for frame in frames:
        window.write(frame, 0.0)
    window._process.stdin.close()
    window._process.wait(10)
    window.close()
    assert (tmp_path / "30x20.rgb").read_bytes() == b"".join(frame.tobytes() for frame in frames)


def test_a_window_without_a_display_names_what_to_do(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(MissingDependencyError, match=r"needs a display.*--video"):
        Window("t")
