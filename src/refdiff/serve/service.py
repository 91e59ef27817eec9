"""Ask the engines on behalf of a request: a job, its answers and limits, and the errors of all paths."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from refdiff.contracts.session import ImageArray
from refdiff.engines.interruption import CancelledError
from refdiff.errors import InputError, MissingDependencyError, RefdiffError
from refdiff.runtime.image import ImageLike, read_image
from refdiff.runtime.segmentation import Segmentation
from refdiff.serve.metrics import Metrics
from refdiff.serve.request import Prompt, image_id_of
from refdiff.serve.worker import (
    ClosedError,
    EngineWorker,
    Job,
    QueueFullError,
    UnknownImageError,
)

_RETRY_AFTER_S = 1
_LOOK_S = 0.25
"""Seconds between two looks whether the client is still there."""


@dataclass(kw_only=True)
class Status:
    """State of the server, as /health/ready reports it."""

    tested: bool = False
    """Whether the self-test has passed."""
    draining: bool = False
    """Whether the server stops: running requests are answered, new ones refused."""

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.tested and not self.draining


class ProblemError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP's.
        kind: for programs.
        message: one line for people.
        headers: more headers of the answer.
    """

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, headers or {}


class AnswerService:
    """Puts jobs into the queue of the engines; the handlers of every protocol share it.

    Args:
        worker: owns the engines.
        metrics: counts images and refusals.
        status: shared with the server, which sets it.
        request_seconds: time in s for the answers to a request; the job is cancelled then.
        decoders: images that are decoded at the same time.
    """

    def __init__(
        self,
        worker: EngineWorker,
        metrics: Metrics,
        status: Status,
        *,
        request_seconds: float = 120.0,
        decoders: int = 2,
    ) -> None:
        self.worker, self.metrics, self.status = worker, metrics, status
        self.request_seconds = request_seconds
        self._decoders = asyncio.Semaphore(decoders)

    @property
    def live(self) -> bool:
        """Whether the engines' thread runs, or ends as intended."""
        return self.worker.alive or self.status.draining

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.status.ready and self.worker.alive

    def check_accepting(self) -> None:
        """Refuse a request before its body is read, if it cannot be answered now.

        Raises:
            ProblemError: the server starts or stops (503), or the queue is full (429).
        """
        if not self.status.ready:
            raise self.rejected(
                ProblemError(503, "not_ready", "the server is starting or stopping", _retry())
            )
        if self.worker.full:
            raise self.rejected(_queue_full())

    async def ask(
        self,
        prompts: tuple[Prompt, ...],
        *,
        image: bytes | ImageArray | None = None,
        image_id: str | None = None,
    ) -> Answers:
        """Put a job into the queue and return its answers, which come while it runs.

        Args:
            prompts: phrases.
            image: an image file, decoded outside of the event loop unless its encoding is kept; or pixels
                [y, x, 3] RGB.
            image_id: id of an image that was sent earlier, in place of `image`.

        Raises:
            ProblemError: an image or a phrase cannot be used, the image is not kept, or the queue is full.
        """
        try:
            self.worker.check_prompts(prompts)
            found_id, decoded = await self._image(image, image_id)
            answers = Answers(self, asyncio.get_running_loop(), found_id)
            answers.job = Job(image_id=found_id, image=decoded, prompts=prompts, listener=answers)
            self.worker.submit(answers.job)
        except QueueFullError:
            raise self.rejected(_queue_full()) from None
        except ClosedError:
            raise self.rejected(_stopping()) from None
        except RefdiffError as error:
            raise problem_of(error) from None
        return answers

    async def _image(
        self, image: bytes | ImageArray | None, image_id: str | None
    ) -> tuple[str, ImageLike | None]:
        """Return the id of the image, and the image if it was sent: decoded, unless it is known already."""
        found_id = image_id if image is None else await asyncio.to_thread(image_id_of, image)
        assert found_id is not None  # noqa: S101 - one of the two is there
        known = self.worker.cache.get(found_id) is not None
        self.metrics.images.labels(cache="hit" if known else "miss").inc()
        if known:
            return found_id, image
        if image is None:
            raise UnknownImageError(found_id)
        async with self._decoders:
            return found_id, await asyncio.to_thread(read_image, image, name="the request's image")

    def rejected(self, problem: ProblemError) -> ProblemError:
        """Count a refusal and return it."""
        self.metrics.rejected.labels(reason=problem.kind).inc()
        return problem


class Answers:
    """The answers to one job, handed from the worker's thread to the event loop."""

    job: Job

    def __init__(self, service: AnswerService, loop: asyncio.AbstractEventLoop, image_id: str) -> None:
        self._service, self._loop = service, loop
        self._queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.image_id = image_id
        self.stages: Mapping[str, float] = {}
        """Time of each stage in s, once the job has ended."""

    def answered(self, index: int, answer: Segmentation) -> None:
        """Take an answer, in the worker's thread."""
        self._post("answer", (index, answer))

    def finished(self, error: Exception | None, stages: Mapping[str, float]) -> None:
        """Take the end of the job, in the worker's thread."""
        self.stages = stages
        self._post("end", error)

    def _post(self, kind: str, value: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (kind, value))
        except RuntimeError:  # the loop is closed: the server has ended
            return

    async def each(self, request: Request) -> AsyncGenerator[tuple[int, Segmentation], None]:
        """Yield index and answer of each prompt; cancel the job when the client goes away or time is over.

        Raises:
            ProblemError: the job failed, took too long (504), or its client is gone (499).
        """
        ends = time.monotonic() + self._service.request_seconds
        try:
            while True:
                try:
                    kind, value = await asyncio.wait_for(self._queue.get(), _LOOK_S)
                except asyncio.TimeoutError:
                    await self._check(request, ends)
                    continue
                if kind == "answer":
                    yield value
                    continue
                if value is not None:
                    raise self._failure(value)
                return
        finally:
            self._service.worker.withdraw(self.job)

    async def all(self, request: Request) -> list[Segmentation]:
        """Return the answers to all prompts, in their order; raises as `each` does."""
        async with aclosing(self.each(request)) as found:
            return [answer async for _, answer in found]

    async def _check(self, request: Request, ends: float) -> None:
        if time.monotonic() > ends:
            limit = self._service.request_seconds
            late = ProblemError(504, "timeout", f"no answer within {limit:g} s", _retry())
            raise self._service.rejected(late)
        if await request.is_disconnected():
            raise self._service.rejected(client_gone())

    def _failure(self, error: Exception) -> ProblemError:
        if isinstance(error, (ClosedError, CancelledError)):
            return self._service.rejected(_stopping())
        if isinstance(error, RefdiffError):
            return problem_of(error)
        return ProblemError(500, "internal_error", "the server failed; its log has the reason")


def problem_of(error: RefdiffError) -> ProblemError:
    """Return the HTTP error of one of refdiff's; only what the client can fix is explained."""
    if isinstance(error, UnknownImageError):
        return ProblemError(404, "unknown_image", str(error))
    if isinstance(error, InputError):
        return ProblemError(400, "invalid_request", str(error))
    if isinstance(error, MissingDependencyError):
        return ProblemError(501, "not_installed", str(error))
    return ProblemError(500, "engine_error", "an engine failed; the server's log has the reason")


def client_gone() -> ProblemError:
    """Return the end of a request whose client closed the connection; only the log has it."""
    return ProblemError(499, "client_gone", "the client has gone away")


def _stopping() -> ProblemError:
    return ProblemError(503, "not_ready", "the server is stopping", _retry())


def _queue_full() -> ProblemError:
    return ProblemError(429, "queue_full", "too many requests wait; try again later", _retry())


def _retry() -> dict[str, str]:
    return {"Retry-After": str(_RETRY_AFTER_S)}
