"""The server's engines, as a live session uses them: each of its key frames is one job in the worker's queue.

Requests and sessions take turns, because a session has one job in the queue at a time and the queue is served
in order. What is cancelled leaves the queue at once, or ends before its next graph.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from refdiff.camera.key_lane import SharedSessions
from refdiff.contracts.options import RunOptions
from refdiff.contracts.session import ImageArray
from refdiff.engines.interruption import CancelledError, Gap
from refdiff.errors import EngineError, RefdiffError
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.segmentation import Segmentation
from refdiff.serve.request import Prompt
from refdiff.serve.worker import ClosedError, EngineWorker, Job

_LOOK_S = 0.05
"""Seconds between two looks whether a key frame is still of use."""


class SharedEngines:
    """What the key lane of a `Tracker` takes for engines of its own (`refdiff.camera.key_lane.OwnedEngines`).

    Masks are followed by points alone: a refinement by SAM would use the engines inside of a job.

    Args:
        worker: owns the engines.
        gap: raises CancelledError once the key frame in progress is of no use any more.
    """

    backend = "shared"
    reason = "the engines of the server"
    encoder_s: float | None = None

    def __init__(self, worker: EngineWorker, gap: Gap) -> None:
        self._worker, self._gap = worker, gap

    @property
    def sessions(self) -> SharedSessions:
        """What the lane asks about the sessions."""
        return self

    @contextmanager
    def encode_once(self) -> Iterator[None]:
        """Do nothing: no refinement runs here."""
        yield

    def segmenter(self, _: RunOptions) -> Segmenter:
        """Return what answers key frames, with the options that the server was started with."""
        return cast("Segmenter", self)

    def check_phrases(self, phrases: Sequence[str]) -> None:
        """Raise InputError for the first phrase that cannot be answered; runs no graph."""
        self._worker.check_prompts(_prompts(phrases))

    def encode(self, pixels: ImageArray) -> ImageArray:
        """Return the frame [y, x, 3] as it is: it is encoded in the job that answers its phrases."""
        return pixels

    def segment_each(self, pixels: ImageArray, phrases: Sequence[str]) -> Iterator[Segmentation]:
        """Yield the answers to a frame in the order of the phrases.

        Raises:
            CancelledError: they are of no use any more.
            RefdiffError: the frame cannot be answered, or the server stops.
        """
        answers = _JobAnswers()
        job = Job(image_id=None, image=pixels, prompts=_prompts(phrases), listener=answers, counted=False)
        try:
            self._worker.submit(job)
            while (answer := self._next(answers)) is not None:
                yield answer
        except ClosedError as error:
            raise EngineError("the server is stopping") from error
        finally:
            self._worker.withdraw(job)

    def _next(self, answers: _JobAnswers) -> Segmentation | None:
        """Wait for the next answer; None after the last one."""
        while True:
            self._gap("queue")
            try:
                found = answers.received.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if isinstance(found, (RefdiffError, ClosedError, CancelledError)):
                raise found
            if isinstance(found, Exception):
                raise EngineError("an engine failed; the server's log has the reason") from found
            return found

    def close(self) -> None:
        """Do nothing: the engines belong to the server."""


class _JobAnswers:
    """Receives a job's answers in the worker's thread; after the last one comes None or the error."""

    def __init__(self) -> None:
        self.received: queue.SimpleQueue[Segmentation | Exception | None] = queue.SimpleQueue()

    def answered(self, _: int, answer: Segmentation) -> None:
        self.received.put(answer)

    def finished(self, error: Exception | None, _: Mapping[str, Any]) -> None:
        self.received.put(error)


def _prompts(phrases: Sequence[str]) -> tuple[Prompt, ...]:
    return tuple(Prompt(text=each) for each in phrases)
