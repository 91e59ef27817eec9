"""Reader processes: what they leave behind, whom they outlive, and streams from a second real process."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from refdiff.camera.frame import Frame
from refdiff.camera.pattern import read_pattern_number
from refdiff.camera.sources.reader_source import ReaderSource
from refdiff.camera.sources.source import SourceOptions, open_source
from refdiff.errors import MissingDependencyError, SourceError
from tests.support.rtsp_relay import RtspRelay

ROOT = Path(__file__).parents[3]
SENDER = [sys.executable, "-m", "tests.support.stream_sender"]
PATIENCE_S = 30.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


def wait_until(fact: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < limit
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def mapped_rings() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:refdiff-frames")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def sender(address: str, form: str, first: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*SENDER, address, form, str(first), "100"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(source: ReaderSource, enough: Callable[[int], bool]) -> list[Frame]:
    """Read until a frame of the pattern has a number that is enough."""
    frames, limit = [], time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        frame = source.read(1.0)
        if frame is None:
            continue
        number = read_pattern_number(frame.pixels)
        assert number is not None
        frames.append(frame)
        if enough(number):
            return frames
    raise AssertionError(source.take_events())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mpegts", "rtsp"])
def test_a_stream_from_another_process_comes_back_when_that_process_does(form: str) -> None:
    pytest.importorskip("av")
    with RtspRelay() as relay, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        heard = f"rtsp://127.0.0.1:{relay.port}/1" if form == "rtsp" else f"tcp://127.0.0.1:{port}"
        sent = heard if form == "rtsp" else f"{heard}?listen"
        options = SourceOptions(backoff_s=(0.05, 0.2), open_attempts=500, first_frame_timeout_s=10)
        with ExitStack() as first:
            first.enter_context(sender(sent, form, 0))
            if form == "rtsp":
                wait_until(lambda: relay.described)
            with open_source(heard, options) as source:
                frames = read_until(source, lambda number: number >= 5)
                first.close()
                with sender(sent, form, 10_000):
                    frames += read_until(source, lambda number: number >= 10_005)
                counts, events = source.counts(), source.take_events()
        shown = [read_pattern_number(frame.pixels) or 0 for frame in frames]
        assert shown == sorted(set(shown))
        numbers = [frame.number for frame in frames]
        assert numbers == sorted(set(numbers))
        assert counts.reconnects == 1
        assert form == "rtsp" or all(frame.pts_s is not None for frame in frames)  # RTP has none at first
        causes = {event.cause for event in events if event.kind == "failed"}
        assert causes <= {"refused", "not_found", "closed", "unknown"}


@pytest.mark.slow
def test_a_reader_ends_with_its_parent_and_takes_its_command_along(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = (
        "import sys, time\n"
        "from refdiff.camera.sources.source import SourceOptions, open_source\n"
        f"command = 'cmd:sh -c \"echo $$ > {note}; exec sleep 1000\"'\n"
        "source = open_source(command, SourceOptions(size_xy=(4, 2)))\n"
        "while source.reader_pid is None: time.sleep(0.01)\n"
        "print(source.reader_pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    reader = int(parent.stdout.readline())
    wait_until(lambda: note.exists() and note.read_text().strip() != "")
    command = int(note.read_text())
    assert runs(reader)
    assert runs(command)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not runs(reader) and not runs(command))


def test_a_command_that_hangs_is_ended_with_its_reader(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    options = SourceOptions(size_xy=(4, 2), first_frame_timeout_s=0.6, open_attempts=1)
    with open_source(f"cmd:sh -c 'echo $$ > {note}; exec sleep 1000'", options) as source:
        wait_until(lambda: source.ended or (note.exists() and note.read_text().strip() != ""))
        with pytest.raises(SourceError, match=r"no first frame within 0.6 s; check the address"):
            source.read(PATIENCE_S)
    if note.exists():
        wait_until(lambda: not runs(int(note.read_text())))


@pytest.mark.slow
def test_nothing_is_left_of_readers_that_were_killed() -> None:
    rings, files = mapped_rings(), open_files()
    options = SourceOptions(frames="every", size_xy=(64, 32), backoff_s=(0.01, 0.02))
    with open_source("pattern", options) as source:
        assert source.read(PATIENCE_S) is not None
        assert mapped_rings() > rings
        pid = source.reader_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: source.reader_pid not in (pid, None))
        assert source.read(PATIENCE_S) is not None
    assert mapped_rings() == rings
    assert open_files() == files
    assert not runs(pid)


def test_a_missing_package_is_named_before_a_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"tcp://\*\*\*@h needs av.*pip install"):
        open_source("tcp://u:p@h")


@pytest.mark.slow
def test_a_reader_imports_no_engine_and_nothing_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemError")
    code = (
        f"import sys; sys.path[:] = {[entry for entry in sys.path if entry]!r}\n"
        "import refdiff.camera.sources.reader, refdiff.camera.sources.video, refdiff.camera.sources.raw\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'cv2', 'PIL', 'av'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, timeout=60)
