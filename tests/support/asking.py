"""Clients that ask a server in threads, and know the right answers."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import refdiff
from refdiff.contracts.options import BackendOptions
from refdiff.data.synthetic import HELD_OUT_FROM, scene_samples
from refdiff.runtime.image import png
from refdiff.serve.attempts import ServerError
from refdiff.serve.client import Client


class Questions:
    """Image files with a phrase and its mask, as one process computes it with one thread.

    Args:
        count: of them; the clients ask them in turns.
        bundle: that answers.
    """

    def __init__(self, count: int = 4, bundle: str = "mini") -> None:
        self.all: list[tuple[bytes, str, np.ndarray | None]] = []
        with refdiff.load(bundle, backend=BackendOptions(threads=1)) as segmenter:
            for sample in scene_samples(range(HELD_OUT_FROM, HELD_OUT_FROM + count)):
                data = png(sample.read())
                self.all.append((data, sample.phrase, segmenter.segment(data, sample.phrase).mask))


class Asking:
    """Threads that ask one question after the other until they are stopped; use it in a `with` block.

    Args:
        url: of the server.
        questions: what they ask.
        clients: how many there are.
        limits: arguments of each `Client`.
    """

    def __init__(self, url: str, questions: Questions, clients: int, **limits: object) -> None:
        self.outcomes: Counter[str] = Counter()
        """Of all requests: "right", "wrong", "lost", "not reached", or status and kind of a refusal."""
        self.messages: list[str] = []
        """What was said about each request that was neither right nor refused."""
        self.repeated = 0
        self._questions, self._lock, self._stop = questions.all, threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number, Client(url, **limits)))
            for number in range(clients)
        ]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, condition, seconds: float = 60) -> None:
        """Wait until a function of the outcomes is true."""
        for _ in range(int(seconds / 0.05)):
            with self._lock:
                if condition(self.outcomes):
                    return
            self._stop.wait(0.05)
        raise TimeoutError(f"after {seconds:g} s the outcomes are {dict(self.outcomes)}: {self.messages[:3]}")

    def _ask(self, number: int, client: Client) -> None:
        while not self._stop.is_set():
            data, phrase, mask = self._questions[number % len(self._questions)]
            number += 1
            before, message = client.repeated, ""
            try:
                (answer,) = client.segment(data, phrase)
                outcome = "right" if _same(answer.mask, mask) else "wrong"
            except ServerError as error:
                outcome, message = outcome_of(error), str(error)
                self._stop.wait(0.1)
            with self._lock:
                self.outcomes[outcome] += 1
                self.repeated += client.repeated - before
                if outcome in ("wrong", "lost"):
                    self.messages.append(message)


def outcome_of(error: ServerError) -> str:
    """Return what became of a request: the status and kind of its refusal, or how it was lost."""
    if error.status is not None:
        return f"{error.status} {error.kind or 'of a router'}"
    return "not reached" if isinstance(error.__cause__, ConnectionRefusedError) else "lost"


def _same(mask: np.ndarray | None, other: np.ndarray | None) -> bool:
    return (mask is None and other is None) or bool(np.array_equal(mask, other))


class ServerProcess:
    """`refdiff serve` as a child, whose log is kept."""

    def __init__(self, process: subprocess.Popen[str], timeout_s: float) -> None:
        self.process, self.log, self.url = process, [], ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(timeout_s) or not self.url:
            process.kill()
            self._reader.join(20)
            raise AssertionError("".join(self.log[-20:]))

    def _read(self) -> None:
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.match(r"serving at (\S+)", line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def ended(self, timeout_s: float = 60) -> int:
        """Wait for the end and return the exit code; the log is complete then."""
        code = self.process.wait(timeout_s)
        self._reader.join(20)
        return code


@contextmanager
def server_process(*arguments: str, timeout_s: float = 120) -> Iterator[ServerProcess]:
    """Run `refdiff serve` with these arguments until it is stopped; it is killed at the end of the block."""
    command = [sys.executable, "-m", "refdiff", "serve", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield ServerProcess(process, timeout_s)
        finally:
            if process.poll() is None:
                process.kill()


def replica_processes(pid: int) -> list[int]:
    """Return the processes of Ray Serve's replicas that descend from a process."""
    parents: dict[int, int] = {}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(fields[1])
        if command.startswith(b"ray::ServeReplica:refdiff") and fields[0] != "Z":
            found.append(int(folder.name))
    return [each for each in sorted(found) if _descends(each, pid, parents)]


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor
