"""The key lane: one thread that owns the engines and answers the newest frame, with everything to be found.

It takes one job at a time from a slot where a newer job replaces a waiting one, and is cancelled between two
graphs. Refinements of followed masks run in the gaps between the graphs of a key frame. No lock is held while
a graph runs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from refdiff.camera.frame import Frame
from refdiff.camera.summary import KeyCounts
from refdiff.contracts.options import RunOptions
from refdiff.engines.interruption import CLOSED_GAPS, CancelledError, Gap
from refdiff.errors import RefdiffError
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.refinement import Refinement
from refdiff.runtime.segmentation import Segmentation

REFINE_SHARE = 1 / 3
"""Largest share of a key frame's time that refinements in its gaps take."""


class OwnedEngines(Protocol):
    """What the lane's thread opens and owns; `Engines` is one."""

    @property
    def sessions(self) -> SharedSessions:
        """The sessions of all segmenters."""
        ...

    def segmenter(self, options: RunOptions) -> Segmenter:
        """Return the segmenter of these options."""
        ...

    def close(self) -> None:
        """Free the engines."""
        ...


class SharedSessions(Protocol):
    """What the lane needs to know of the sessions; `GapSessions` is one."""

    backend: str
    reason: str
    encoder_s: float | None

    def encode_once(self) -> AbstractContextManager[None]:
        """Run SAM's encoder once in the block."""
        ...


class Prompted(Protocol):
    """The prompt of a refinement, as `Segmenter.refine` takes it."""

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `Segmenter.refine`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Work on one frame."""

    frame: Frame
    owners: tuple[object, ...]
    """What each answer belongs to; handed back with it."""
    options: RunOptions
    finished: threading.Event = field(default_factory=threading.Event, repr=False)
    """Set when the job is answered, has failed, was cancelled or replaced."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyJob(Job):
    """A frame to be answered for some phrases, one for each owner."""

    phrases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class RefineJob(Job):
    """Prompts for SAM on one frame, one for each owner."""

    prompts: tuple[Prompted, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyAnswer:
    """One phrase's answer to a job: a segmentation, a refinement, or the error it ended with."""

    owner: object
    frame: Frame
    at_s: float
    """`time.monotonic()` when it was ready."""
    found: Segmentation | Refinement | None = None
    error: RefdiffError | None = None


class KeyLane:
    """Answers jobs in a thread of its own; all methods may be called from other threads.

    Args:
        open_engines: called in the thread with the function to be called before each graph.
        most_failures: jobs in a row that may fail; the error of the last one then ends the lane.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        open_engines: Callable[[Gap], OwnedEngines],
        *,
        most_failures: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_engines
        self._most_failures = most_failures
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: dict[type[Job], Job] = {}
        """At most one job of each kind."""
        # Bounded by the track lane: it offers a job for a frame, and takes all answers before each frame.
        self._answers: deque[KeyAnswer] = deque()
        self._generation = self._running = 0
        self._closing = self._refining = False
        self._failures = 0
        self._refine_after_s = 0.0
        self._engines: OwnedEngines | None = None
        self._error: BaseException | None = None
        self._opened = threading.Event()
        self.counts = KeyCounts()
        self._thread = threading.Thread(target=self._work, name="refdiff-key", daemon=True)

    def start(self) -> None:
        """Start the thread and wait until the engines are open.

        Raises:
            RefdiffError: they cannot be opened.
        """
        self._thread.start()
        self._opened.wait()
        self.check()

    def check(self) -> None:
        """Raise the error that ended the lane, if one has."""
        if self._error is not None:
            raise self._error

    @property
    def backend(self) -> tuple[str, str]:
        """The back-end that the graphs run on, and the reason for it; valid once `start` has returned."""
        return (
            ("", "")
            if self._engines is None
            else (self._engines.sessions.backend, self._engines.sessions.reason)
        )

    @property
    def encoder_s(self) -> float | None:
        """Shortest measured time of SAM's encoder in s; None until it has run."""
        return None if self._engines is None else self._engines.sessions.encoder_s

    def check_phrases(self, phrases: tuple[str, ...], options: RunOptions) -> None:
        """Refuse phrases or options that no frame could be answered with; runs no graph.

        Raises:
            InputError: names the first one.
        """
        self.check()
        if self._engines is not None:
            self._engines.segmenter(options).check_phrases(phrases)

    def offer(self, job: KeyJob | RefineJob) -> None:
        """Put a job into the slot of its kind, instead of the one that waits there."""
        with self._changed:
            if type(job) in self._waiting:
                self._waiting[type(job)].finished.set()
            self._waiting[type(job)] = job
            if self._closing or self._error is not None:
                self._drop_waiting()
            self._changed.notify_all()

    def cancel(self) -> None:
        """Forget the jobs that wait, and end the one in progress before its next graph."""
        with self._changed:
            self._generation += 1
            self._drop_waiting()

    def take(self) -> list[KeyAnswer]:
        """Return the answers since the last call, oldest first."""
        with self._changed:
            answers = list(self._answers)
            self._answers.clear()
        return answers

    def close(self) -> None:
        """End the thread and free the engines; waits for the graph that runs. Calling it twice is fine."""
        with self._changed:
            self._closing = True
            self._generation += 1
            self._drop_waiting()
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _drop_waiting(self) -> None:
        for job in self._waiting.values():
            job.finished.set()
        self._waiting.clear()

    def _work(self) -> None:
        try:
            self._engines = self._open(self._gap)
        except BaseException as error:
            self._error = error
            self._opened.set()
            return
        self._opened.set()
        try:
            while (job := self._next()) is not None:
                self._run(self._engines, job)
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._drop_waiting()
            self._engines.close()

    def _next(self) -> Job | None:
        """Wait for a job, key frames first; None when the lane closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting)
            self._running = self._generation
            if self._closing:
                return None
            return self._waiting.pop(KeyJob if KeyJob in self._waiting else RefineJob)

    def _run(self, engines: OwnedEngines, job: Job) -> None:
        try:
            if isinstance(job, KeyJob):
                self._answer(engines, job)
            elif isinstance(job, RefineJob):
                self._answer_prompts(engines, job)
        except CancelledError:
            self.counts.cancelled += 1
        finally:
            job.finished.set()

    def _answer(self, engines: OwnedEngines, job: KeyJob) -> None:
        """Answer all phrases; image work is done once.

        Raises:
            CancelledError: the job is of no use any more.
            RefdiffError: too many jobs in a row have failed.
        """
        try:
            segmenter = engines.segmenter(job.options)
            encoded = segmenter.encode(job.frame.pixels)
            answers = segmenter.segment_each(encoded, job.phrases)
            for owner, found in zip(job.owners, answers, strict=True):
                self._post(owner, job.frame, found)
        except RefdiffError as error:
            self.counts.failed += 1
            self._failures += 1
            for owner in job.owners:
                self._post(owner, job.frame, error=error)
            if self._failures >= self._most_failures:
                raise
            return
        self._failures = 0
        self.counts.answered += 1

    def _answer_prompts(self, engines: OwnedEngines, job: RefineJob) -> None:
        """Answer the prompts of one frame; an error is of these prompts alone and is counted."""
        started, segmenter = self._clock(), engines.segmenter(job.options)
        self._refining = True
        try:
            with engines.sessions.encode_once():
                for owner, prompt in zip(job.owners, job.prompts, strict=True):
                    self._post(owner, job.frame, segmenter.refine(job.frame.pixels, **prompt.arguments()))
            self.counts.refined += 1
        except RefdiffError:
            self.counts.refinements_failed += 1
        finally:
            self._refining = False
            ended = self._clock()
            self._refine_after_s = ended + (ended - started) * (1 / REFINE_SHARE - 1)

    def _post(
        self,
        owner: object,
        frame: Frame,
        found: Segmentation | Refinement | None = None,
        error: RefdiffError | None = None,
    ) -> None:
        with self._changed:
            if self._running != self._generation:
                raise CancelledError
            self._answers.append(
                KeyAnswer(owner=owner, frame=frame, at_s=self._clock(), found=found, error=error)
            )

    def _gap(self, graph: str) -> None:
        """Stop a cancelled job, and let a waiting refinement use the engines; called before each graph.

        Raises:
            CancelledError: the job is of no use any more.
        """
        if self._running != self._generation:
            raise CancelledError
        if self._refining or graph in CLOSED_GAPS or self._engines is None:
            return
        with self._changed:
            job = self._waiting.get(RefineJob)
            if not isinstance(job, RefineJob) or self._clock() < self._refine_after_s:
                return
            del self._waiting[RefineJob]
        try:
            self._answer_prompts(self._engines, job)
        finally:
            job.finished.set()
