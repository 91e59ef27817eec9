"""Observe a build: TensorRT's log and progress, and stopping it from outside.

In: TensorRT's calls, from its own threads. Out: the log's text, errors and layers; and at most one line of
progress a second, such as "unet: Timing graph nodes 53/154". A build runs in a thread, so that Ctrl-C is
handled while it runs.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from refdiff.contracts.progress import Progress
from refdiff.engines.trt.flavour import Flavour, member_name

LAYER_LINE = "LayerType: "
"""Text in each line of the build log that describes a layer of the plan."""

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")
"""One line for each optimization profile; a context takes the largest."""

_IGNORED = re.compile(r"catchCudaError.*CUDA driver version is insufficient|^Unable to determine GPU memory")
"""Errors that every build without a driver logs."""


class BuildLog(Protocol):
    """The logger that `make_log` returns."""

    lines: list[str]
    errors: list[str]
    layers: list[str]
    """Lines that describe the plan's layers; `attention_blocks.layers_in_log` reads them."""


def make_log(flavour: Flavour) -> BuildLog:
    """Make a logger for a builder and a parser; it keeps information, warnings and errors."""
    levels: Any = flavour.module.ILogger

    class Log(levels):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if LAYER_LINE in message:
                self.layers += [line for line in message.split("\n") if LAYER_LINE in line]
            if int(severity) > int(levels.INFO):
                return
            self.lines.append(f"[{member_name(severity)}] {message}")
            if int(severity) <= int(levels.ERROR) and not _IGNORED.search(message):
                self.errors.append(message)

    return cast("BuildLog", Log())


def activation_bytes(log: BuildLog) -> int | None:
    """Return the device memory of one context's activations in bytes; None if the log does not say."""
    found = [int(match[1]) for line in log.lines if (match := _ACTIVATIONS.search(line))]
    return max(found, default=None)


def last_error(log: BuildLog) -> str:
    """Return the first line of the last error, which describes a failure best."""
    return log.errors[-1].strip().splitlines()[0] if log.errors else "it gives no reason"


_SECONDS_BETWEEN_LINES = 1.0
_POLL_SECONDS = 0.1

_T = TypeVar("_T")


@dataclass
class Watch:
    """Reports the progress of a running build, and stops it."""

    title: str
    """Name of what is built; the start of every line."""
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    """Exception of `progress`, to be raised when TensorRT has returned."""
    _steps: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _reported_at: float | None = None

    def started(self, phase: str, steps: int) -> None:
        """Handle the start of a phase of so many steps."""
        with self._lock:
            self._steps[phase] = steps
        self._report(f"{self.title}: {phase}")

    def stepped(self, phase: str, step: int) -> bool:
        """Handle a finished step, counted from 0; return whether to go on."""
        if (steps := self._steps.get(phase, 0)) > 1:
            self._report(f"{self.title}: {phase} {step + 1}/{steps}")
        return not self.stop.is_set()

    def finished(self, phase: str) -> None:
        """Handle the end of a phase."""
        with self._lock:
            self._steps.pop(phase, None)

    def _report(self, line: str) -> None:
        now = self.clock()
        with self._lock:
            if self._reported_at is not None and now - self._reported_at < _SECONDS_BETWEEN_LINES:
                return
            self._reported_at = now
        try:
            self.progress(line)
        except Exception as error:  # must not cross TensorRT's frames: it ends the build, then is raised
            self.failure = error
            self.stop.set()


def make_monitor(flavour: Flavour, watch: Watch) -> Any | None:
    """Make the `progress_monitor` of a builder configuration; None if this version has none."""
    base: Any = getattr(flavour.module, "IProgressMonitor", None)
    if base is None:
        return None

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            watch.started(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.stepped(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watch.finished(phase_name)

    return Monitor()


def run_stoppable(work: Callable[[], _T], stop: threading.Event) -> _T:
    """Run work in a separate thread and wait for it.

    An interruption of the wait (Ctrl-C, SIGTERM) sets `stop`, waits until the work has ended, and is raised.

    Args:
        work: checks `stop` regularly.
        stop: set when the caller is interrupted.

    Raises:
        BaseException: raised by `work`, or the interruption.
    """
    results: list[_T] = []
    errors: list[BaseException] = []
    begun, done = threading.Event(), threading.Event()

    def run() -> None:
        begun.wait()
        try:
            results.append(work())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="refdiff-build", daemon=True)
    try:
        thread.start()
        begun.set()  # not before: an interrupted start would leave work running
        # Not Thread.join: after an interrupted join the thread counts as ended (CPython issue 90882).
        while not done.wait(_POLL_SECONDS):
            pass
    except BaseException:
        stop.set()
        if begun.is_set():
            done.wait()
        raise
    if errors:
        raise errors[0]
    return results[0]
