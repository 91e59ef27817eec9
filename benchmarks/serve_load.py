"""Load `refdiff serve` from this process over the loopback address, and compare it with the pipeline.

    .venv/bin/python -m benchmarks.serve_load [--seconds 120] [--clients 1 8 64]

Every request is an image that the server has not seen, as a PNG file, and one phrase; the engines have one
thread, so that the clients have a core. A refused request (429) is counted and asked again after the time the
server names. At the end, one client and the pipeline in this process are asked in turns. Run it on a machine
that does nothing else: it refuses to record otherwise. Adds an entry to results/serve-load.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import refdiff
from benchmarks.records import RESULTS, QuietMachine, add_entry
from refdiff.contracts.options import BackendOptions
from refdiff.data.synthetic import HELD_OUT_FROM, scene_samples
from refdiff.runtime.image import png
from refdiff.serve.attempts import ServerError
from refdiff.serve.client import Client

RECORD = RESULTS / "serve-load.json"
SCENES = 40
CACHE_MB = 64
"""Encoded images that the server keeps, in MB: the first client fills them, and memory is level after it."""


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="mini")
    parser.add_argument("--seconds", type=float, default=120, help="for each number of clients")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64])
    given = parser.parse_args()
    with QuietMachine() as machine:
        questions = Questions()
        with server(given.bundle) as (url, process):
            loads = {str(many): load(url, process, questions, many, given.seconds) for many in given.clients}
            direct, served = in_turns(url, given.bundle, questions, given.seconds)
    entry = {
        "threads": 1,
        "seconds": given.seconds,
        "cache_mb": CACHE_MB,
        "clients": loads,
        "pipeline_ms": round(1e3 * direct, 2),
        "served_ms": round(1e3 * served, 2),
        "overhead_of_one_client": round(served / direct - 1, 4),
        "others_share_of_cores": round(machine.others, 4),
    }
    add_entry(RECORD, given.bundle, entry)


class Questions:
    """Images that differ from each other, with their phrases; shared by all clients."""

    def __init__(self) -> None:
        self._samples = list(scene_samples(range(HELD_OUT_FROM, HELD_OUT_FROM + SCENES)))
        self._images = [sample.read().copy() for sample in self._samples]
        self._count = count()

    def draw(self) -> tuple[bytes, str]:
        """Return an image file that was never returned before, and a phrase."""
        number = next(self._count)
        at = number % len(self._samples)
        image = self._images[at].copy()
        image[0, 0] = [number >> shift & 255 for shift in (0, 8, 16)]
        return png(image), self._samples[at].phrase


def in_turns(url: str, bundle: str, questions: Questions, seconds: float) -> tuple[float, float]:
    """Return the mean time of a question in s in this process, and that of one to the server.

    The questions alternate, because the machine's speed changes within minutes.
    """
    direct: list[float] = []
    served: list[float] = []
    with refdiff.load(bundle, backend=BackendOptions(threads=1)) as segmenter:
        segmenter.segment(*questions.draw())
        client = Client(url, attempts=1)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for times in (direct, served):
                image, phrase = questions.draw()
                started = time.perf_counter()
                if times is direct:
                    segmenter.segment(image, phrase)
                else:
                    client.segment(image, phrase)
                times.append(time.perf_counter() - started)
    return float(np.mean(direct)), float(np.mean(served))


@contextmanager
def server(bundle: str, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a server as a child; further arguments come last."""
    command = [sys.executable, "-m", "refdiff", "serve", bundle, "--port", "0", "--threads", "1"]
    command += ["--cache", str(CACHE_MB), *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        lines = iter(process.stderr or ())
        address = next(line.split()[-1] for line in lines if "serving at" in line)
        threading.Thread(target=lambda: [None for _ in lines], daemon=True).start()  # its log
        yield address, process
        process.send_signal(signal.SIGTERM)


class Asked:
    """What became of the requests of all clients."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.refused = 0
        self.failed: list[str] = []

    def ask(self, url: str, questions: Questions, ends: float) -> None:
        """Ask one question after the other, as one client."""
        client = Client(url, attempts=1)
        while time.monotonic() < ends:
            image, phrase = questions.draw()
            started = time.perf_counter()
            try:
                client.segment(image, phrase)
            except ServerError as error:
                if error.kind == "queue_full":
                    self.refused += 1
                else:
                    self.failed.append(str(error))
                time.sleep(1)
            else:
                self.times.append(time.perf_counter() - started)


def load(
    url: str, process: subprocess.Popen[str], questions: Questions, many: int, seconds: float
) -> dict[str, Any]:
    """Ask with so many clients at once for so long."""
    asked = Asked()
    ends = time.monotonic() + seconds
    memory = [resident(process.pid)]
    threads = [threading.Thread(target=asked.ask, args=(url, questions, ends)) for _ in range(many)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        time.sleep(seconds / 4)
        memory.append(resident(process.pid))
    for thread in threads:
        thread.join()
    p50, p99 = np.percentile(asked.times, [50, 99])
    return {
        "answered": len(asked.times),
        "per_second": round(len(asked.times) / seconds, 2),
        "mean_ms": round(1e3 * float(np.mean(asked.times)), 2),
        "p50_ms": round(1e3 * float(p50), 2),
        "p99_ms": round(1e3 * float(p99), 2),
        "refused_429": asked.refused,
        "failed": asked.failed,
        "resident_mb": [round(each / 1e6, 1) for each in memory],
    }


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
