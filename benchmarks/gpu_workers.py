"""Contenders in processes of their own: one that crashes or hangs is written down, and the others go on.

A request goes to a worker, a result comes back; the caller decides how long to wait.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu_contenders import Contender, Feeds, make
from refdiff.contracts.bundle import open_bundle

_SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork


class WorkerError(Exception):
    """A failed worker; the message is its last line."""


@dataclass
class Worker:
    """One contender on some graphs, in its own process."""

    name: str
    folder: Path
    programs: Path | None
    graphs: list[str]
    dead: str | None = None
    """Reason why it answers no more."""
    _pipe: Connection = field(init=False)

    def __post_init__(self) -> None:
        """Start it; it loads its library when it is first asked."""
        self._pipe, theirs = _SPAWN.Pipe()
        arguments = (theirs, self.name, self.folder, self.programs)
        self._process = _SPAWN.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, verb: str, graph: str = "", times: int = 1) -> None:
        """Send a question: open, run, host, device or stop."""
        if self.dead is None:
            try:
                self._pipe.send((verb, graph, times))
            except OSError:
                self._lost()

    def answer(self, seconds: float) -> Any:
        """Wait for the answer to the oldest question.

        Raises:
            WorkerError: an exception over there, a crash, or no answer in time.
        """
        if self.dead is not None:
            raise WorkerError(self.dead)
        try:
            if not self._pipe.poll(max(seconds, 0)):
                self.dead = f"no answer in {seconds:.0f} s"
                self._process.kill()
                raise WorkerError(self.dead)
            good, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._lost()
            raise WorkerError(self.dead or "gone") from error
        if not good:
            raise WorkerError(value)
        return value

    def stop(self) -> None:
        """End the process; one that does not close in time is killed."""
        self.ask("stop")
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def _lost(self) -> None:
        self._process.join(5)
        self.dead = f"the process ended with code {self._process.exitcode}"


def _serve(pipe: Connection, name: str, folder: Path, programs: Path | None) -> None:
    """Answer requests until the stop request; golden feeds are read here, too large for a pipe."""
    golden = open_bundle(folder, verify="size").golden()
    contender: Contender | None = None

    def answered(verb: str, graph: str, times: int) -> Any:
        nonlocal contender
        contender = contender or make(name, folder, programs)
        return _carried_out(contender, verb, graph, golden[graph][0], times)

    while (question := pipe.recv())[0] != "stop":
        pipe.send(_outcome(partial(answered, *question)))
    pipe.close()
    os._exit(0)  # libraries that disagree about who unloads first


def _outcome(work: Callable[[], Any]) -> tuple[bool, Any]:
    """Return the value, or any error in one line."""
    try:
        return True, work()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:600]
        return False, f"{type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})"


def _carried_out(contender: Contender, verb: str, graph: str, feeds: Feeds, times: int) -> Any:
    if verb == "open":
        return contender.open(graph, feeds)
    if verb == "run":
        return contender.run(graph, feeds)
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        if verb == "host":
            contender.run(graph, feeds)
        else:
            contender.repeat(graph)
        taken.append(1e3 * (time.perf_counter() - started))
    return taken
