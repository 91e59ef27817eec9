"""Rates, delays and memory of `refdiff.track` on a live source while the key lane is busy all the time.

    python -m benchmarks.camera_rate --minutes 20          mini, edge, scenes at 640x480 and 30 frames/s
    python -m benchmarks.camera_rate --memory-only         memory and order alone, on any machine
    python -m benchmarks.camera_rate --minutes 1 --dry     the same, printed and not recorded

Writes benchmarks/results/camera-rate.json, and refuses to on a machine that does something else. The graphs
run in one thread fewer than there are cores: one is left to the source and to what follows the masks. The
process ends with 1 where a limit is not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from benchmarks.records import RESULTS, QuietMachine, add_entry
from refdiff.camera.options import CameraOptions
from refdiff.camera.sources.source import SourceOptions
from refdiff.camera.summary import Quantiles
from refdiff.camera.target import TrackOptions
from refdiff.camera.track import Tracker
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.loading import spare_threads
from refdiff.profiling.sensors import read_memory

RECORD = RESULTS / "camera-rate.json"
LEAST_FPS, MOST_P99_MS = 29.5, 50.0
"""Limits: the source has 30 frames/s, and its clock is not ours."""

_WARM_S = 10.0
"""Time at the start that memory is not judged by: engines are loaded, and allocators reach their size."""


class MemorySlope:
    """Reads the process's resident memory once a second; the slope is that of a line through the values."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._values: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> dict[str, Any]:
        """Return the resident memory in MB after the warm-up and at the end, and its growth per minute."""
        self._stop.set()
        self._thread.join()
        begin = self._values[0][0] + _WARM_S
        late = [each for each in self._values if each[0] >= begin] or self._values
        seconds, sizes = np.array(late, dtype=np.float64).T
        slope = np.polyfit(seconds, sizes, 1)[0] if len(late) > 1 else 0.0
        return {
            "every_tenth_of_the_time_mb": [
                round(float(each) / 1e6, 1) for each in sizes[:: max(1, len(sizes) // 10)]
            ],
            "start_mb": round(sizes[0] / 1e6, 1),
            "end_mb": round(sizes[-1] / 1e6, 1),
            "most_mb": round(sizes.max() / 1e6, 1),
            "slope_mb_per_minute": round(60 * slope / 1e6, 3),
        }

    def _read(self) -> None:
        while not self._stop.wait(1.0):
            memory = read_memory()
            if memory is not None:
                self._values.append((time.monotonic(), memory.resident))


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="mini")
    parser.add_argument("--phrases", nargs="+", default=["the green candle"])
    parser.add_argument("--source", default="scenes:3")
    parser.add_argument("--level", default="points")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--dry", action="store_true", help="print, and record nothing, on any machine")
    parser.add_argument("--memory-only", action="store_true", help="record memory and order, on any machine")
    given = parser.parse_args()
    anywhere = given.dry or given.memory_only
    machine: AbstractContextManager[Any] = nullcontext() if anywhere else QuietMachine()
    with machine as quiet:
        entry = measure(given)
    print(json.dumps(entry, indent=1))  # noqa: T201 - what a benchmark is for
    if given.memory_only:
        kept = ("options", "results", "out_of_order_or_twice", "memory", "seconds", "dropped", "key_frames")
        add_entry(
            RECORD, f"{given.bundle}, memory over {given.minutes:g} minutes", {n: entry[n] for n in kept}
        )
        return
    if not given.dry:
        name = f"{given.bundle}, {len(given.phrases)} phrases, level {given.level}, {given.minutes:g} minutes"
        add_entry(RECORD, name, {**entry, "others_share_of_cores": round(quiet.others, 4)})
    if not entry["kept"]:
        sys.exit(1)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run, and return what was measured."""
    sys.setswitchinterval(0.001)  # as `refdiff camera` does
    threads = spare_threads()
    options = CameraOptions(
        run=RunOptions(),
        source=SourceOptions(frames="newest", size_xy=(640, 480), rate=30),
        track=TrackOptions(level=given.level),
        seconds=60 * given.minutes,
    )
    delay, disorder, last, count = Quantiles(), 0, -1, 0
    with Tracker(
        given.bundle, given.source, given.phrases, options=options, backend=BackendOptions(threads=threads)
    ) as tracker:
        memory = MemorySlope()
        for result in tracker:
            delay.add(time.monotonic() - result.frame.captured_s)
            disorder += result.frame.number <= last
            last, count = result.frame.number, count + 1
        growth = memory.close()
    summary = tracker.summary().to_json()
    out = summary["fps"]["out"]
    p99 = delay.to_json()["p99"]
    return {
        "options": {
            "variant": "edge",
            "threads_of_graphs": threads,
            "size": "640x480",
            "source": given.source,
            "phrases": given.phrases,
            "level": given.level,
        },
        "results": count,
        "out_of_order_or_twice": disorder,
        "capture_to_consumer_ms": delay.to_json(),
        "memory": growth,
        **{
            name: summary[name]
            for name in ("seconds", "fps", "delays_ms", "states", "dropped", "key_frames", "key")
        },
        "kept": bool(disorder == 0 and out >= LEAST_FPS and p99 is not None and p99 <= MOST_P99_MS),
    }


if __name__ == "__main__":
    main()
