"""Attack whole runs of a camera: graphs that fail, a full disk, slow consumers, kills, changes without end.

    .venv/bin/python -m benchmarks.camera_run_faults                     all faults, recorded (about a minute)
    .venv/bin/python -m benchmarks.camera_run_faults --only disk-full    one of them, not recorded

A fault is lost if a run hangs, a frame comes twice or out of order, an old phrase is answered, engines are
loaded twice, or what was recorded cannot be read. Exit code 1 if one is lost.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.camera_fault_log import run_faults
from refdiff.camera.frame import FrameResult
from refdiff.camera.options import CameraOptions
from refdiff.camera.sources.source import SourceOptions, open_source
from refdiff.camera.track import Tracker
from refdiff.contracts.options import DEFAULT_RUN, BackendOptions
from refdiff.engines.interruption import Gap
from refdiff.errors import EngineError
from refdiff.loading import Engines

BACKEND = BackendOptions(name="ort-cpu", threads=1)
SMALL = SourceOptions(size_xy=(320, 240), rate=30, backoff_s=(0.01, 0.05))
COMMAND = (
    *(sys.executable, "-m", "refdiff", "camera", "mini", "the green candle"),
    *("--source", "scenes:3", "--size", "320x240", "--threads", "1", "--json"),
)
LIMIT_S = 60.0


class Run:
    """A run of the miniature on rendered scenes, whose graphs may be made to fail.

    Args:
        fails: called with a graph's name and how often it has run; returns whether it fails.
    """

    def __init__(self, fails: Callable[[str, int], bool] | None = None) -> None:
        self.opened, self.runs = 0, dict[str, int]()
        self.results: list[FrameResult] = []
        self.source = open_source("scenes:3", SMALL)
        self._fails = fails
        self.tracker = Tracker(
            "mini",
            self.source,
            ["the green candle"],
            options=CameraOptions(run=DEFAULT_RUN),
            backend=BACKEND,
            open_engines=self._open,
        )

    def _open(self, gap: Gap) -> Engines:
        self.opened += 1

        def watched(graph: str) -> None:
            gap(graph)
            self.runs[graph] = self.runs.get(graph, 0) + 1
            if self._fails is not None and self._fails(graph, self.runs[graph]):
                raise EngineError(f"{graph} failed on purpose")

        return Engines("mini", DEFAULT_RUN, BACKEND, watched)

    def go(self, until: Callable[[], bool], each: Callable[[FrameResult], None] | None = None) -> str:
        """Take results until a condition holds, and return the error that ended the run, or nothing."""
        started = time.monotonic()
        try:
            with self.tracker:
                for result in self.tracker:
                    self.results.append(result)
                    if each is not None:
                        each(result)
                    if until() or time.monotonic() - started > LIMIT_S:
                        break
        except EngineError as error:
            return str(error)
        return ""

    def row(self, **more: Any) -> dict[str, Any]:
        """Return what every fault is judged by."""
        numbers = [each.frame.number for each in self.results]
        summary = self.tracker.summary()
        failed = [] if numbers == sorted(set(numbers)) else ["a frame came twice or out of order"]
        failed += [] if self.opened == 1 else ["the engines were loaded more than once"]
        events = [event.kind for result in self.results for event in result.events]
        return {
            "results": len(numbers),
            "key_frames": summary.key_frames,
            "dropped": dict(summary.dropped),
            "key": dict(summary.key),
            "events": {kind: events.count(kind) for kind in sorted(set(events))},
            **more,
            "failed": failed,
        }


def graph_that_raises_once() -> dict[str, Any]:
    """Let one run of every graph fail, one after the other: each costs its key frame or refinement alone."""
    broken: set[str] = set()

    def fails(graph: str, count: int) -> bool:
        due = count > 1 and graph not in broken and run.tracker.summary().key_frames > 2 * len(broken)
        if due:
            broken.add(graph)
        return due

    run = Run(fails)
    ended = run.go(lambda: run.tracker.summary().key_frames >= 25)
    row = run.row(graphs=sorted(broken), error=ended)
    failures = row["key"]["failed"] + row["key"]["refinements_failed"]
    if ended or len(broken) < 5 or failures != len(broken):
        row["failed"].append("a failure cost more than its key frame or its refinement")
    return row


def graph_that_raises_for_good() -> dict[str, Any]:
    """Let a graph fail from its third run on: the run ends with its error after three key frames."""
    run = Run(lambda graph, count: graph == "vae_encoder" and count > 2)
    ended = run.go(lambda: False)
    row = run.row(error=ended)
    if "vae_encoder failed" not in ended or row["key"]["failed"] != 3:
        row["failed"].append("the run did not end with the error of the graph")
    return row


def slow_consumer() -> dict[str, Any]:
    """Take five results a second of a source of 30: what comes is new, and the rest is counted."""
    ages: list[float] = []

    def take(result: FrameResult) -> None:
        ages.append(time.monotonic() - result.frame.captured_s)
        time.sleep(0.2)

    run = Run()
    run.go(lambda: len(run.results) >= 30, take)
    ages_ms = sorted(round(1000 * each) for each in ages)
    row = run.row(age_of_frames_ms={"p50": ages_ms[len(ages_ms) // 2], "max": ages_ms[-1]})
    if not row["dropped"].get("consumer") or row["age_of_frames_ms"]["p50"] > 150:
        row["failed"].append("frames were old, or not counted")
    return row


def changes_without_end() -> dict[str, Any]:
    """Change the phrase after every ninth result: no answer is one to another phrase."""
    phrases = ("the green candle", "the red block", "the plate")
    wrong, changed = 0, -1

    def change(result: FrameResult) -> None:
        nonlocal wrong, changed
        (target,) = result.targets
        if target.version == len(run.results) // 9 and target.key_number is not None:
            wrong += target.key_number <= changed  # a key frame of the phrase before
        if len(run.results) % 9 == 0:
            changed = result.frame.number
            run.tracker.set_phrases([phrases[len(run.results) // 9 % 3]])

    run = Run()
    run.go(lambda: len(run.results) >= 200, change)
    versions = [each.targets[0].version for each in run.results]
    row = run.row(versions=max(versions))
    if wrong or versions != sorted(versions) or not row["key"]["cancelled"]:
        row["failed"].append("an old phrase came back, or nothing was cancelled")
    return row


def source_killed_while_tracking() -> dict[str, Any]:
    """Kill the reader ten times with SIGKILL: the run goes on, and engines stay loaded."""
    kills = 0

    def kill(_: FrameResult) -> None:
        nonlocal kills
        if kills < 10 and len(run.results) % 20 == 0 and run.source.reader_pid:
            os.kill(run.source.reader_pid, signal.SIGKILL)
            kills += 1

    run = Run()
    run.go(lambda: len(run.results) >= 260, kill)
    row = run.row(kills=kills, reconnects=run.tracker.summary().reconnects)
    if kills != 10 or row["reconnects"] < 9 or len(run.results) < 260:
        row["failed"].append("the run did not go on")
    return row


def disk_full() -> dict[str, Any]:
    """Limit the files of a recording process after a few frames: what was written stays whole."""
    with tempfile.TemporaryDirectory() as folder:
        process = _start("--frames", "every", "--max-frames", "120", "--output", folder)
        results, video = Path(folder, "results.jsonl"), Path(folder, "overlay.mp4")
        _wait_for_lines(process, results, 40)
        most = max(results.stat().st_size, video.stat().st_size) + 1000
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        output, errors = process.communicate(timeout=LIMIT_S)
        summary = json.loads(output)
        read, files = _read(folder), list(summary["files"].values())
    for values in files:
        values["error"] = values["error"] and values["error"].split(": ", 1)[1]
    failed = []
    if process.returncode != 1 or summary["results"] != 120 or "too large" not in errors:
        failed.append("the run ended, or did not say that a file is incomplete")
    if read["lines"] != files[1]["written"] or read["frames_of_the_video"] == 0:
        failed.append("what was written before is lost")
    return {"exit_code": process.returncode, "files": files, **read, "failed": failed}


def killed_while_recording() -> dict[str, Any]:
    """Kill a recording process with SIGKILL: lines are whole, and the video plays to the last second."""
    with tempfile.TemporaryDirectory() as folder:
        process = _start("--output", folder)
        _wait_for_lines(process, Path(folder, "results.jsonl"), 120)
        process.kill()
        process.communicate(timeout=LIMIT_S)
        read = _read(folder)
    lost = read["lines"] - read["frames_of_the_video"]
    return {**read, "failed": [] if lost <= 45 else ["more than a second is lost"]}


def _start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_lines(process: subprocess.Popen[str], path: Path, count: int) -> None:
    until = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise SystemExit(f"{path.name} did not get {count} lines; the process ended with {process.poll()}")


def _read(folder: str) -> dict[str, int]:
    """Return how many lines and frames can be read."""
    import av

    text = Path(folder, "results.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    frames = 0
    with av.open(str(Path(folder, "overlay.mp4"))) as video, suppress(av.error.InvalidDataError):
        for _ in video.decode(video=0):  # ends with an error in a fragment that a kill has cut short
            frames += 1
    return {"lines": len(lines), "frames_of_the_video": frames}


FAULTS: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        graph_that_raises_once,
        graph_that_raises_for_good,
        slow_consumer,
        changes_without_end,
        source_killed_while_tracking,
        disk_full,
        killed_while_recording,
    )
}


if __name__ == "__main__":
    sys.exit(run_faults(FAULTS, "runs", __doc__))
