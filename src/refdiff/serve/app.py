"""The HTTP application: paths, and how a request becomes a job and its answers.

Every error is JSON: {"error": {"type", "message", "request_id"}}.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from refdiff import __version__
from refdiff.camera.engines import CancelledError
from refdiff.errors import InputError, MissingDependencyError, RefdiffError
from refdiff.runtime.image import ImageLike, read_image
from refdiff.runtime.segmentation import Segmentation
from refdiff.serve.guard import BodyError, Guard, GuardOptions
from refdiff.serve.metrics import CONTENT_TYPE, Metrics
from refdiff.serve.openapi import document as openapi_document
from refdiff.serve.page import page_routes
from refdiff.serve.request import MOST_PROMPTS, SegmentRequest, image_id_of, read_form, read_json
from refdiff.serve.response import prompt_result
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


@dataclass(frozen=True, kw_only=True)
class AppOptions:
    """Options of the application."""

    guard: GuardOptions = field(default_factory=GuardOptions)
    request_seconds: float = 120.0
    """Time in s for the answers to a request; the job is cancelled then."""
    decoders: int = 2
    """Images that are decoded at the same time."""


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


class _ProblemError(Exception):
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


def create_app(
    worker: EngineWorker,
    *,
    options: AppOptions | None = None,
    metrics: Metrics | None = None,
    status: Status | None = None,
) -> Guard:
    """Return the ASGI application over a started worker.

    Args:
        worker: owns the engines.
        options: limits.
        metrics: also the worker's observer, so that stages are timed.
        status: shared with the server, which sets it.
    """
    options, metrics, status = options or AppOptions(), metrics or Metrics(), status or Status(tested=True)
    service = _Service(worker, options, metrics, status)
    app = Starlette(
        routes=[
            Route("/v1/segment", service.segment, methods=["POST"]),
            Route("/v1/segment/stream", service.stream, methods=["POST"]),
            Route("/health/live", service.live),
            Route("/health/ready", service.ready),
            Route("/metrics", service.metrics),
            Route("/openapi.json", _openapi),
            *page_routes(),
        ],
        exception_handlers={
            _ProblemError: _problem_response,
            HTTPException: _http_response,
            BodyError: _body_response,
            Exception: _failed_response,
        },
    )
    app.router.redirect_slashes = False
    patterns = [(route.path_regex, route.path) for route in app.routes if isinstance(route, Route)]

    def name_path(path: str) -> str:
        return next((name for regex, name in patterns if regex.match(path)), "unknown")

    return Guard(app, options.guard, metrics, name_path)


class _Answers:
    """Hands the answers of a job from the worker's thread to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.stages: Mapping[str, float] = {}
        """Time of each stage in s, once the job has ended."""

    def answered(self, index: int, answer: Segmentation) -> None:
        self._post("answer", (index, answer))

    def finished(self, error: Exception | None, stages: Mapping[str, float]) -> None:
        self.stages = stages
        self._post("end", error)

    def _post(self, kind: str, value: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (kind, value))
        except RuntimeError:  # the loop is closed: the server has ended
            return

    async def next(self) -> tuple[str, Any]:
        return await self._queue.get()


class _Service:
    """The handlers."""

    def __init__(self, worker: EngineWorker, options: AppOptions, metrics: Metrics, status: Status) -> None:
        self._worker, self._options, self._metrics, self._status = worker, options, metrics, status
        self._decoders = asyncio.Semaphore(options.decoders)

    async def live(self, _: Request) -> Response:
        """Answer 200 as long as the engines' thread runs."""
        alive = self._worker.alive or self._status.draining
        return JSONResponse({"live": alive}, status_code=200 if alive else 503)

    async def ready(self, _: Request) -> Response:
        """Answer 200 once the self-test has passed, and until the server stops."""
        ready = self._status.ready and self._worker.alive
        return JSONResponse({"ready": ready, "version": __version__}, status_code=200 if ready else 503)

    async def metrics(self, _: Request) -> Response:
        """Answer with Prometheus' text."""
        self._metrics.waiting.set(self._worker.waiting)
        self._metrics.cache_bytes.set(self._worker.cache.bytes)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def segment(self, request: Request) -> Response:
        """Answer all prompts in one document."""
        started = time.perf_counter()
        asked, job, answers = await self._begin(request)
        results: list[dict[str, Any]] = []
        async with aclosing(self._until_end(request, job, answers)) as found:
            async for index, answer in found:
                results.append(await _encoded(answer, index, asked))
        return JSONResponse(
            {
                "image_id": job.image_id,
                "prompt_results": results,
                "time": round(time.perf_counter() - started, 4),
                "timings": _rounded(answers.stages),
            }
        )

    async def stream(self, request: Request) -> Response:
        """Answer each prompt when it is ready, as server-sent events."""
        started = time.perf_counter()
        asked, job, answers = await self._begin(request)

        async def events() -> AsyncIterator[str]:
            try:
                async with aclosing(self._until_end(request, job, answers)) as found:
                    async for index, answer in found:
                        yield _event("answer", await _encoded(answer, index, asked))
            except _ProblemError as problem:
                yield _event("error", _error_of(problem, request))
            else:
                seconds = round(time.perf_counter() - started, 4)
                stages = _rounded(answers.stages)
                yield _event("done", {"image_id": job.image_id, "time": seconds, "timings": stages})

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _begin(self, request: Request) -> tuple[SegmentRequest, Job, _Answers]:
        """Read a request and put its job into the queue."""
        if not self._status.ready:
            raise self._rejected(
                _ProblemError(503, "not_ready", "the server is starting or stopping", _retry())
            )
        if self._worker.full:
            raise self._rejected(_queue_full())
        asked = await _read(request)
        answers = _Answers(asyncio.get_running_loop())
        try:
            self._worker.check_prompts(asked.prompts)
            image_id, image = await self._image(asked)
            job = Job(image_id=image_id, image=image, prompts=asked.prompts, listener=answers)
            self._worker.submit(job)
        except QueueFullError:
            raise self._rejected(_queue_full()) from None
        except ClosedError:
            raise self._rejected(
                _ProblemError(503, "not_ready", "the server is stopping", _retry())
            ) from None
        except RefdiffError as error:
            raise _of_error(error) from None
        return asked, job, answers

    async def _image(self, asked: SegmentRequest) -> tuple[str, ImageLike | None]:
        """Return the id of the image, and the image if it was sent: decoded, unless it is known already."""
        image_id = asked.image_id if asked.image is None else image_id_of(asked.image)
        assert image_id is not None  # noqa: S101 - one of the two is there
        known = self._worker.cache.get(image_id) is not None
        self._metrics.images.labels(cache="hit" if known else "miss").inc()
        if known:
            return image_id, asked.image
        if asked.image is None:
            raise UnknownImageError(image_id)
        async with self._decoders:
            return image_id, await asyncio.to_thread(read_image, asked.image, name="the request's image")

    async def _until_end(
        self, request: Request, job: Job, answers: _Answers
    ) -> AsyncGenerator[tuple[int, Segmentation], None]:
        """Yield the answers; cancel the job when the client goes away or the time is over."""
        ends = time.monotonic() + self._options.request_seconds
        try:
            while True:
                try:
                    kind, value = await asyncio.wait_for(answers.next(), _LOOK_S)
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
            job.cancelled.set()

    async def _check(self, request: Request, ends: float) -> None:
        if time.monotonic() > ends:
            limit = self._options.request_seconds
            raise self._rejected(_ProblemError(504, "timeout", f"no answer within {limit:g} s", _retry()))
        if await request.is_disconnected():
            raise self._rejected(_ProblemError(499, "client_gone", "the client has gone away"))

    def _failure(self, error: Exception) -> _ProblemError:
        if isinstance(error, (ClosedError, CancelledError)):
            return self._rejected(_ProblemError(503, "not_ready", "the server is stopping", _retry()))
        if isinstance(error, RefdiffError):
            return _of_error(error)
        return _ProblemError(500, "internal_error", "the server failed; its log has the reason")

    def _rejected(self, problem: _ProblemError) -> _ProblemError:
        self._metrics.rejected.labels(reason=problem.kind).inc()
        return problem


async def _encoded(answer: Segmentation, index: int, asked: SegmentRequest) -> dict[str, Any]:
    """Encode an answer outside of the event loop."""
    try:
        return await asyncio.to_thread(prompt_result, answer, index, asked)
    except RefdiffError as error:
        raise _of_error(error) from None


async def _read(request: Request) -> SegmentRequest:
    """Read the body of a request in either form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return read_json(await request.body())
        if kind == "multipart/form-data":
            async with request.form(max_files=1, max_fields=MOST_PROMPTS + 8, max_part_size=1 << 20) as form:
                return read_form([(name, await _part(value)) for name, value in form.multi_items()])
    except InputError as error:
        raise _of_error(error) from None
    except (MultiPartException, HTTPException) as error:
        text = getattr(error, "message", None) or getattr(error, "detail", "")
        raise _ProblemError(400, "invalid_request", f"the form cannot be read: {text}") from None
    except ClientDisconnect:
        raise _ProblemError(499, "client_gone", "the client has gone away") from None
    raise _ProblemError(
        415,
        "unsupported_media",
        f"got a body of type {kind[:60]!r}, expected application/json or multipart/form-data",
    )


async def _part(value: Any) -> str | bytes:
    return value if isinstance(value, str) else await value.read()


def _of_error(error: RefdiffError) -> _ProblemError:
    """Return the HTTP error of one of refdiff's; only what the client can fix is explained."""
    if isinstance(error, UnknownImageError):
        return _ProblemError(404, "unknown_image", str(error))
    if isinstance(error, InputError):
        return _ProblemError(400, "invalid_request", str(error))
    if isinstance(error, MissingDependencyError):
        return _ProblemError(501, "not_installed", str(error))
    return _ProblemError(500, "engine_error", "an engine failed; the server's log has the reason")


def _rounded(stages: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 5) for name, seconds in stages.items()}


def _queue_full() -> _ProblemError:
    return _ProblemError(429, "queue_full", "too many requests wait; try again later", _retry())


def _retry() -> dict[str, str]:
    return {"Retry-After": str(_RETRY_AFTER_S)}


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _error_of(problem: _ProblemError, request: Request) -> dict[str, Any]:
    request_id = request.scope.get("request_id")
    return {"error": {"type": problem.kind, "message": str(problem), "request_id": request_id}}


async def _problem_response(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, _ProblemError)  # noqa: S101 - starlette's signature is wider
    return JSONResponse(_error_of(problem, request), status_code=problem.status, headers=problem.headers)


async def _http_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - starlette's signature is wider
    kind = {404: "unknown_path", 405: "wrong_method"}.get(error.status_code, "invalid_request")
    problem = _ProblemError(error.status_code, kind, str(error.detail), dict(error.headers or {}))
    return await _problem_response(request, problem)


async def _body_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, BodyError)  # noqa: S101 - starlette's signature is wider
    problem = _ProblemError(error.status, "invalid_request", str(error), {"Connection": "close"})
    return await _problem_response(request, problem)


async def _failed_response(request: Request, _: Exception) -> Response:
    problem = _ProblemError(500, "internal_error", "the server failed; its log has the reason")
    return await _problem_response(request, problem)


async def _openapi(_: Request) -> Response:
    return JSONResponse(openapi_document())
