"""TensorRT's own progress as lines, and stopping a build from outside.

In: TensorRT's calls, from threads of its own. Out: at most one line a second, such as
"unet: Timing graph nodes 53/154". A build runs in a thread, so that Ctrl-C is heard while it does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from refdiff.engines.trt.flavour import Flavour

Tell = Callable[[str], None]

_SECONDS_BETWEEN_LINES = 1.0
_SECONDS_TO_LOOK = 0.1

_T = TypeVar("_T")


@dataclass
class Watch:
    """A running build, seen from outside."""

    title: str
    """What is built, the start of every line."""
    tell: Tell
    clock: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    """What telling a line raised, to be raised when TensorRT has returned."""
    _steps: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _told_at: float | None = None

    def started(self, phase: str, steps: int) -> None:
        """A phase of so many steps begins."""
        with self._lock:
            self._steps[phase] = steps
        self._say(f"{self.title}: {phase}")

    def stepped(self, phase: str, step: int) -> bool:
        """A step, counted from 0, is done; returns whether to go on."""
        if (steps := self._steps.get(phase, 0)) > 1:
            self._say(f"{self.title}: {phase} {step + 1}/{steps}")
        return not self.stop.is_set()

    def finished(self, phase: str) -> None:
        """A phase ends."""
        with self._lock:
            self._steps.pop(phase, None)

    def _say(self, line: str) -> None:
        now = self.clock()
        with self._lock:
            if self._told_at is not None and now - self._told_at < _SECONDS_BETWEEN_LINES:
                return
            self._told_at = now
        try:
            self.tell(line)
        except Exception as error:  # must not cross TensorRT's frames: it ends the build, then is raised
            self.failure = error
            self.stop.set()


def make_monitor(flavour: Flavour, watch: Watch) -> Any | None:
    """What a builder configuration takes as `progress_monitor`; None where this version has none."""
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
    """Do work in a thread of its own and wait for it.

    Whatever interrupts the wait (Ctrl-C, SIGTERM) sets `stop`, waits until the work has ended, and goes on.

    Args:
        work: looks at `stop` now and then.
        stop: set when the caller is interrupted.

    Raises:
        BaseException: what `work` raised, or what interrupted the wait.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="refdiff-build", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_SECONDS_TO_LOOK)
    except BaseException:
        stop.set()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
