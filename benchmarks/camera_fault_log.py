"""What is read from a source under attack, and what has to hold of it; senders that are attacked."""

from __future__ import annotations

import argparse
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import RESULTS, add_entry
from refdiff.camera.pattern import read_pattern_number
from refdiff.camera.sources.reader_source import ReaderSource

RECORD = RESULTS / "camera-faults.json"
HANG_S = 20.0
"""Without a frame for so long, a fault is lost; every limit that is set for a source is far shorter."""


@dataclass
class Log:
    """What was read from a source."""

    source: ReaderSource
    shown: list[int] = field(default_factory=list)
    """The numbers in the pixels."""
    numbers: list[int] = field(default_factory=list)
    """Those of the frames."""
    sizes: Counter[str] = field(default_factory=Counter)
    ages_ms: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)

    def read(self, enough: Callable[[], bool], *, pause_s: float = 0.0) -> None:
        """Read until there is enough, the source ends, or nothing comes for too long."""
        last = time.monotonic()
        while not enough() and not self.source.ended:
            frame = self.source.read(0.5)
            now = time.monotonic()
            if frame is None:
                if now - last > HANG_S:
                    self.failed.append(f"no frame within {HANG_S:g} s")
                    return
                continue
            self.gaps_s.append(now - last)
            last = now
            self.numbers.append(frame.number)
            self.sizes["x".join(map(str, frame.size_yx[::-1]))] += 1
            self.ages_ms.append((now - frame.captured_s) * 1000)
            shown = read_pattern_number(frame.pixels)
            self.shown.append(-1 if shown is None else shown)
            time.sleep(pause_s)

    def row(self, **more: Any) -> dict[str, Any]:
        """Close the source, check what must hold for each fault, and return the counts."""
        self.source.close()
        counts = self.source.counts()
        for event in self.source.take_events():
            self.events[f"{event.kind} {event.cause}".strip()] += 1
        checks = {
            "a number of a frame came twice or out of order": _rising(self.numbers),
            "pixels came twice or out of order": _rising(self.shown),
            "a frame shows what was never sent": -1 not in self.shown,
            "a frame has no account": counts.captured == counts.delivered + sum(counts.dropped.values()),
        }
        self.failed += [text for text, holds in checks.items() if not holds]
        return {
            "captured": counts.captured,
            "delivered": counts.delivered,
            "dropped": dict(counts.dropped),
            "reconnects": counts.reconnects,
            "events": dict(sorted(self.events.items())),
            "longest_gap_s": round(max(self.gaps_s, default=0.0), 3),
            **more,
            "failed": self.failed,
        }


def _rising(values: list[int]) -> bool:
    return all(earlier < later for earlier, later in pairwise(values))


def count_belongings() -> dict[str, int]:
    """Count what a process could leave behind."""
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "rings": Path("/proc/self/maps").read_text().count("memfd:refdiff-frames"),
        "shared memory files": len(list(Path("/dev/shm").iterdir())),  # noqa: S108 - only counted
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "source threads": sum(thread.name == "refdiff-source" for thread in threading.enumerate()),
        "processes": len(children),
    }


def left_behind(before: dict[str, int]) -> dict[str, int]:
    """Return what there is more of than before; servers of a fault may take a moment to go."""
    for _ in range(50):
        after = count_belongings()
        more = {name: after[name] - count for name, count in before.items() if after[name] > count}
        if not more:
            return {}
        time.sleep(0.1)
    return more


def run_faults(faults: Mapping[str, Callable[[], dict[str, Any]]], entry: str, description: str) -> int:
    """Run the faults one after the other, as the command line says; print and record a row for each.

    Args:
        faults: name -> what runs the fault and returns its row, with `failed`, the reasons why it is lost.
        entry: name of the record's entry, which is written if all faults run.
        description: of the command.

    Returns:
        The exit code: 1 if a fault is lost.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(faults), help="a fault; repeatable")
    given = parser.parse_args()
    rows = {}
    for name in given.only or faults:
        before, started = count_belongings(), time.monotonic()
        row = faults[name]()
        row["seconds"] = round(time.monotonic() - started, 1)
        row["left_behind"] = left_behind(before)
        row["failed"] += [f"left behind: {what}" for what in row["left_behind"]]
        rows[name] = row
        print(f"{name}: {row}", flush=True)  # noqa: T201 - what a benchmark is for
    lost = [name for name, row in rows.items() if row["failed"]]
    if not given.only:
        add_entry(RECORD, entry, {"faults": rows, "lost": lost})
    return int(bool(lost))


def wait_for(fact: Callable[[], bool]) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: it does not.
    """
    until = time.monotonic() + HANG_S
    while not fact():
        if time.monotonic() > until:
            raise TimeoutError("a sender or a reader did not start")
        time.sleep(0.01)


@contextmanager
def sender(address: str, form: str, first: int, *, pid: bool = False) -> Iterator[float]:
    """Run a sender; give the time of its start, or its number."""
    command = [sys.executable, "-m", "tests.support.stream_sender", address, form, str(first), "30"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        yield process.pid if pid else time.monotonic()
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def percentile(values: list[float], share: float) -> float:
    """Return a percentile to a tenth."""
    return round(float(np.percentile(values, share)), 1)
