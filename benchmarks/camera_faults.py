"""Attack the sources of the camera: senders and readers that are killed, stalled, slowed, or send garbage.

    .venv/bin/python -m benchmarks.camera_faults                      all faults, recorded (about two minutes)
    .venv/bin/python -m benchmarks.camera_faults --only garbage       one of them, not recorded

A fault is lost if a read hangs, a frame comes twice, out of order or with pixels that were never sent, a drop
has no cause, or memory, files, threads or processes are left behind. Exit code 1 if one is lost.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.camera_fault_log import (
    HANG_S,
    Log,
    free_port,
    percentile,
    run_faults,
    sender,
    wait_for,
)
from refdiff.camera.sources.reader_source import ReaderSource
from refdiff.camera.sources.source import SourceOptions, open_source
from refdiff.errors import RefdiffError, SourceError
from tests.support.rtsp_relay import RtspRelay
from tests.support.streams import Server, encode, refuse

KILLS = 50
QUICK = {
    "backoff_s": (0.05, 0.5),
    "first_frame_timeout_s": 5.0,
    "stall_timeout_s": 1.0,
    "open_attempts": 200,
}


def killed_sender() -> dict[str, Any]:
    """Kill a second process that sends MPEG-TS over TCP, and start it again, five times."""
    port = free_port()
    heard = f"tcp://127.0.0.1:{port}"
    return _killed_sender(heard, f"{heard}?listen", "mpegts")


def killed_rtsp_sender() -> dict[str, Any]:
    """Kill a second process that sends RTSP through a relay, and start it again, five times."""
    with RtspRelay() as relay:
        address = f"rtsp://127.0.0.1:{relay.port}/1"
        return _killed_sender(address, address, "rtsp", ready=lambda: relay.described)


def _killed_sender(
    heard: str, sent: str, form: str, *, ready: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    log: Log | None = None
    returns_s = []
    for first in range(0, 60_000, 10_000):
        with sender(sent, form, first) as started:
            wait_for(ready)
            log = log or Log(open_source(heard, SourceOptions(**QUICK)))  # type: ignore[arg-type]
            log.read(lambda: max(log.shown, default=-1) >= first)  # noqa: B023 - called at once
            returns_s.append(round(time.monotonic() - started, 2))
            goal = len(log.numbers) + 30
            log.read(lambda: len(log.numbers) >= goal)  # noqa: B023 - called at once
    assert log is not None  # noqa: S101 - six rounds
    return log.row(kills=5, from_start_of_the_sender_to_a_frame_s=returns_s)


def stalled_sender() -> dict[str, Any]:
    """Stop a sender with SIGSTOP for four seconds, three times; a stall counts after one second."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    options = {**QUICK, "first_frame_timeout_s": 1.5}
    with sender(f"{address}?listen", "mpegts", 0, pid=True) as pid:
        log = Log(open_source(address, SourceOptions(**options)))  # type: ignore[arg-type]
        for _ in range(3):
            goal = len(log.numbers) + 40
            log.read(lambda: len(log.numbers) >= goal)  # noqa: B023 - called at once
            os.kill(int(pid), signal.SIGSTOP)
            threading.Timer(4.0, os.kill, (int(pid), signal.SIGCONT)).start()
            until = time.monotonic() + 4.0
            log.read(lambda: time.monotonic() >= until)  # noqa: B023 - called at once
        goal = len(log.numbers) + 40
        log.read(lambda: len(log.numbers) >= goal)
        row = log.row(stops=3)
    if row["events"].get("stalled stalled", 0) < 3:
        row["failed"].append("a stall was not noticed")
    return row


_SLOWING = """
import sys, time
from refdiff.camera.pattern import draw_pattern
for number in range(140):
    sys.stdout.buffer.write(draw_pattern(number, (48, 96)).tobytes())
    sys.stdout.buffer.flush()
    time.sleep(1 / 60 if number < 120 else 1 / 4)
time.sleep(60)
"""


def slowed_sender() -> dict[str, Any]:
    """Read a command that writes 60 frames/s, then 4: slow is not stalled, and nothing is restarted."""
    options = SourceOptions(size_xy=(96, 48), pixel_format="rgb24", **QUICK)  # type: ignore[arg-type]
    log = Log(open_source(f"cmd:{sys.executable} -c {shlex.quote(_SLOWING)}", options))
    log.read(lambda: 139 in log.shown)
    row = log.row()
    if set(row["events"]) != {"opened"}:
        row["failed"].append("a slow source was taken for a lost one")
    return row


def changing_size() -> dict[str, Any]:
    """Read a stream whose size changes in the middle, up and down, four times."""
    sizes = [(96, 160), (240, 320), (64, 128), (480, 640), (96, 160)]
    parts = [encode(range(20 * k, 20 * k + 20), size) for k, size in enumerate(sizes)]

    def answer(connection: socket.socket, count: int) -> None:
        for part in parts if count == 0 else ():
            connection.sendall(part)

    with Server(answer) as server:
        options = SourceOptions(frames="every", reconnect_attempts=1, **QUICK)  # type: ignore[arg-type]
        log = Log(open_source(f"tcp://127.0.0.1:{server.port}", options))
        try:
            log.read(lambda: False)
        except SourceError as error:
            ended = type(error).__name__
        row = log.row(sizes=dict(log.sizes), error=ended)
    if row["events"].get("resized") != 4:
        row["failed"].append("a change of the size was not noticed")
    return row


def garbage() -> dict[str, Any]:
    """Read a stream with random bytes in it, then a connection of nothing else, then a good one."""
    rng = np.random.default_rng(0)
    good = encode(range(60))
    broken = bytearray(good)
    for start in range(len(good) // 4, len(good), len(good) // 4):
        broken[start : start + 1500] = rng.bytes(1500)
    later = encode(range(100, 160))

    def answer(connection: socket.socket, count: int) -> None:
        if count == 0:
            connection.sendall(bytes(broken))
        elif count == 1:
            for _ in range(40):
                connection.sendall(rng.bytes(20_000))
                time.sleep(0.05)
        else:
            connection.sendall(later)

    with Server(answer) as server:
        options = {**QUICK, "frames": "every", "first_frame_timeout_s": 3.0}
        log = Log(open_source(f"tcp://127.0.0.1:{server.port}", SourceOptions(**options)))  # type: ignore[arg-type]
        log.read(lambda: 159 in log.shown)
        row = log.row()
    if not row["dropped"].get("damaged"):
        row["failed"].append("no damaged frame was noticed")
    return row


def killed_reader_of_a_camera() -> dict[str, Any]:
    """Kill the reader of a live source with SIGKILL 50 times."""
    options = SourceOptions(size_xy=(320, 240), rate=120, **{**QUICK, "backoff_s": (0.01, 0.05)})  # type: ignore[arg-type]
    log = Log(open_source("pattern", options))
    pids = set()
    for _ in range(KILLS):
        goal = len(log.numbers) + 4
        log.read(lambda: len(log.numbers) >= goal)  # noqa: B023 - called at once
        pids.add(_kill_reader(log.source))
    log.shown.clear()  # the pattern starts again with every reader
    return log.row(kills=KILLS, readers=len(pids))


def killed_reader_of_a_file() -> dict[str, Any]:
    """Kill the reader of a recorded source with SIGKILL 50 times: every frame comes, once."""
    total = KILLS * 6 + 10
    options = {**QUICK, "backoff_s": (0.01, 0.05), "frames": "every", "max_frames": total}
    log = Log(open_source("pattern", SourceOptions(size_xy=(320, 240), **options)))  # type: ignore[arg-type]
    pids = set()
    for _ in range(KILLS):
        goal = len(log.numbers) + 6
        log.read(lambda: len(log.numbers) >= goal)  # noqa: B023 - called at once
        pids.add(_kill_reader(log.source))
    log.read(lambda: False)
    row = log.row(kills=KILLS, readers=len(pids))
    if log.shown != list(range(total)):
        row["failed"].append("a frame of a file is missing")
    return row


def stopped_reader() -> dict[str, Any]:
    """Stop the reader itself with SIGSTOP, as a driver does that never returns, three times."""
    log = Log(open_source("pattern", SourceOptions(size_xy=(320, 240), rate=60, **QUICK)))  # type: ignore[arg-type]
    for _ in range(3):
        goal = len(log.numbers) + 90
        log.read(lambda: len(log.numbers) >= goal)  # noqa: B023 - called at once
        log.shown.clear()  # the pattern starts again with every reader
        wait_for(lambda: log.source.reader_pid is not None)
        os.kill(log.source.reader_pid or 0, signal.SIGSTOP)
    goal = len(log.numbers) + 90
    log.read(lambda: len(log.numbers) >= goal)
    log.shown.clear()
    row = log.row(stops=3)
    if row["events"].get("stalled stalled") != 3:
        row["failed"].append("a reader that hangs was not replaced")
    return row


def slow_consumer() -> dict[str, Any]:
    """Read 5 frames/s of a source of 60: what comes is new, and the rest is counted."""
    log = Log(open_source("pattern", SourceOptions(size_xy=(640, 480), rate=60)))
    log.read(lambda: len(log.numbers) >= 30, pause_s=0.2)
    row = log.row(age_ms={"p50": percentile(log.ages_ms, 50), "p99": percentile(log.ages_ms, 99)})
    if row["age_ms"]["p50"] > 40:
        row["failed"].append("the frames were old")
    return row


def slow_consumer_of_every_frame() -> dict[str, Any]:
    """Read slowly with `every`: the source waits, nothing is dropped, and nothing counts as a stall."""
    options = SourceOptions(size_xy=(640, 480), frames="every", max_frames=20, stall_timeout_s=0.15)
    log = Log(open_source("pattern", options))
    log.read(lambda: False, pause_s=0.2)
    row = log.row()
    if row["dropped"] or log.shown != list(range(20)) or row["reconnects"]:
        row["failed"].append("a frame is missing, or a wait counted as a stall")
    return row


def refusals() -> dict[str, Any]:
    """Open what cannot be opened: each cause has its name, exit code 3, and no password in its text."""

    def silent(connection: socket.socket, _: int) -> None:
        connection.recv(1)
        time.sleep(5)

    def noise(connection: socket.socket, _: int) -> None:
        connection.sendall(b"no video at all\n" * 20_000)

    causes, failed = {}, []
    with (
        Server(refuse("401 Unauthorized")) as locked,
        Server(refuse("404 Not Found")) as empty,
        Server(silent) as hanging,
        Server(noise) as text,
    ):
        cases = {
            "authentication": f"rtsp://admin:hunter22@127.0.0.1:{locked.port}/1",
            "not_found": f"rtsp://admin:hunter22@127.0.0.1:{empty.port}/1",
            "refused": f"tcp://admin:hunter22@127.0.0.1:{free_port()}",
            "codec": f"tcp://admin:hunter22@127.0.0.1:{text.port}",
            "timeout": f"tcp://admin:hunter22@127.0.0.1:{hanging.port}",
        }
        for expected, address in cases.items():
            options = {**QUICK, "open_attempts": 1, "first_frame_timeout_s": 2.0}
            with open_source(address, SourceOptions(**options)) as source:  # type: ignore[arg-type]
                text_, code = _error_of(source)
                found = [event.cause for event in source.take_events() if event.kind == "failed"]
            causes[expected] = text_.replace(address.rsplit(":", 1)[1].split("/")[0], "PORT")
            if found != [expected] or code != 3 or "hunter22" in text_:
                failed.append(f"{expected}: {found}, {code}")
    return {"errors": causes, "failed": failed}


def _error_of(source: ReaderSource) -> tuple[str, int]:
    try:
        source.read(HANG_S)
    except RefdiffError as error:
        return str(error), error.exit_code
    return "", 0


FAULTS: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        killed_sender,
        killed_rtsp_sender,
        stalled_sender,
        slowed_sender,
        changing_size,
        garbage,
        killed_reader_of_a_camera,
        killed_reader_of_a_file,
        stopped_reader,
        slow_consumer,
        slow_consumer_of_every_frame,
        refusals,
    )
}


def _kill_reader(source: ReaderSource) -> int:
    wait_for(lambda: source.reader_pid is not None)
    pid = source.reader_pid or 0
    os.kill(pid, signal.SIGKILL)
    return pid


if __name__ == "__main__":
    sys.exit(run_faults(FAULTS, "sources", __doc__))
