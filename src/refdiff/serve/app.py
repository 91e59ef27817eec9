"""The HTTP application: paths, and the requests and answers of our own protocol.

Every error is JSON: {"error": {"type", "message", "request_id"}}, below /v2 {"error": message}.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from refdiff import __version__
from refdiff.errors import InputError, RefdiffError
from refdiff.runtime.segmentation import Segmentation
from refdiff.serve.guard import BodyError, Guard, GuardOptions, error_document
from refdiff.serve.kserve import kserve_routes
from refdiff.serve.label_studio import label_studio_routes
from refdiff.serve.label_studio_image import LabelStudioOptions
from refdiff.serve.live import LiveOptions, live_routes
from refdiff.serve.metrics import CONTENT_TYPE, Metrics
from refdiff.serve.openapi import document as openapi_document
from refdiff.serve.page import page_routes
from refdiff.serve.request import MOST_PROMPTS, SegmentRequest, in_thread_if_large, read_form, read_json
from refdiff.serve.response import prompt_result
from refdiff.serve.service import Answers, AnswerService, ProblemError, Status, client_gone, problem_of
from refdiff.serve.worker import EngineWorker


@dataclass(frozen=True, kw_only=True)
class AppOptions:
    """Options of the application."""

    guard: GuardOptions = field(default_factory=GuardOptions)
    request_seconds: float = 120.0
    """Time in s for the answers to a request; the job is cancelled then."""
    decoders: int = 2
    """Images that are decoded at the same time."""
    live: LiveOptions = field(default_factory=LiveOptions)
    share: bool = False
    """Whether the page offers to share overlays."""
    label_studio: LabelStudioOptions = field(default_factory=LabelStudioOptions)


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
    service = AnswerService(
        worker, metrics, status, request_seconds=options.request_seconds, decoders=options.decoders
    )
    own = _Handlers(service)
    app = Starlette(
        routes=[
            Route("/v1/segment", own.segment, methods=["POST"]),
            Route("/v1/segment/stream", own.stream, methods=["POST"]),
            Route("/health/live", own.live),
            Route("/health/ready", own.ready),
            Route("/metrics", own.metrics),
            Route("/openapi.json", _openapi),
            *live_routes(service, options.live),
            *page_routes(live=options.live.most_sessions > 0, share=options.share),
            *kserve_routes(service),
            *label_studio_routes(service, options.label_studio),
        ],
        exception_handlers={
            ProblemError: _problem_response,
            HTTPException: _http_response,
            BodyError: _body_response,
            Exception: _failed_response,
        },
    )
    app.router.redirect_slashes = False
    patterns = [
        (route.path_regex, route.path) for route in app.routes if isinstance(route, (Route, WebSocketRoute))
    ]

    def name_path(path: str) -> str:
        return next((name for regex, name in patterns if regex.match(path)), "unknown")

    return Guard(app, options.guard, metrics, name_path)


class _Handlers:
    """Answers the requests of our own protocol."""

    def __init__(self, service: AnswerService) -> None:
        self._service = service

    async def live(self, _: Request) -> Response:
        """Answer 200 as long as the engines' thread runs."""
        alive = self._service.live
        return JSONResponse({"live": alive}, status_code=200 if alive else 503)

    async def ready(self, _: Request) -> Response:
        """Answer 200 once the self-test has passed, and until the server stops."""
        ready = self._service.ready
        return JSONResponse({"ready": ready, "version": __version__}, status_code=200 if ready else 503)

    async def metrics(self, _: Request) -> Response:
        """Answer with Prometheus' text."""
        metrics, worker = self._service.metrics, self._service.worker
        metrics.waiting.set(worker.waiting)
        metrics.cache_bytes.set(worker.cache.bytes)
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    async def segment(self, request: Request) -> Response:
        """Answer all prompts in one document."""
        started = time.perf_counter()
        asked, answers = await self._begin(request)
        results: list[dict[str, Any]] = []
        async with aclosing(answers.each(request)) as found:
            async for index, answer in found:
                results.append(await _encoded(answer, index, asked))
        return JSONResponse(
            {
                "image_id": answers.image_id,
                "prompt_results": results,
                "time": round(time.perf_counter() - started, 4),
                "timings": _rounded(answers.stages),
            }
        )

    async def stream(self, request: Request) -> Response:
        """Answer each prompt when it is ready, as server-sent events."""
        started = time.perf_counter()
        asked, answers = await self._begin(request)

        async def events() -> AsyncIterator[str]:
            try:
                async with aclosing(answers.each(request)) as found:
                    async for index, answer in found:
                        yield _event("answer", await _encoded(answer, index, asked))
            except ProblemError as problem:
                yield _event("error", _error_of(problem, request))
            else:
                seconds = round(time.perf_counter() - started, 4)
                stages = _rounded(answers.stages)
                yield _event("done", {"image_id": answers.image_id, "time": seconds, "timings": stages})

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _begin(self, request: Request) -> tuple[SegmentRequest, Answers]:
        self._service.check_accepting()
        asked = await _read(request)
        return asked, await self._service.ask(asked.prompts, image=asked.image, image_id=asked.image_id)


async def _encoded(answer: Segmentation, index: int, asked: SegmentRequest) -> dict[str, Any]:
    """Encode an answer outside of the event loop."""
    try:
        return await asyncio.to_thread(prompt_result, answer, index, asked)
    except RefdiffError as error:
        raise problem_of(error) from None


async def _read(request: Request) -> SegmentRequest:
    """Read the body of a request in either form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            body = await request.body()
            return await in_thread_if_large(len(body), read_json, body)
        if kind == "multipart/form-data":
            async with request.form(max_files=1, max_fields=MOST_PROMPTS + 8, max_part_size=1 << 20) as form:
                return read_form([(name, await _part(value)) for name, value in form.multi_items()])
    except InputError as error:
        raise problem_of(error) from None
    except (MultiPartException, HTTPException) as error:
        text = getattr(error, "message", None) or getattr(error, "detail", "")
        raise ProblemError(400, "invalid_request", f"the form cannot be read: {text}") from None
    except ClientDisconnect:
        raise client_gone() from None
    raise ProblemError(
        415,
        "unsupported_media",
        f"got a body of type {kind[:60]!r}, expected application/json or multipart/form-data",
    )


async def _part(value: Any) -> str | bytes:
    return value if isinstance(value, str) else await value.read()


def _rounded(stages: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 5) for name, seconds in stages.items()}


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _error_of(problem: ProblemError, request: Request) -> dict[str, Any]:
    return error_document(request.scope["path"], problem.kind, str(problem), request.scope.get("request_id"))


async def _problem_response(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, ProblemError)  # noqa: S101 - starlette's signature is wider
    return JSONResponse(_error_of(problem, request), status_code=problem.status, headers=problem.headers)


async def _http_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - starlette's signature is wider
    kind = {404: "unknown_path", 405: "wrong_method"}.get(error.status_code, "invalid_request")
    problem = ProblemError(error.status_code, kind, str(error.detail), dict(error.headers or {}))
    return await _problem_response(request, problem)


async def _body_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, BodyError)  # noqa: S101 - starlette's signature is wider
    problem = ProblemError(error.status, "invalid_request", str(error), {"Connection": "close"})
    return await _problem_response(request, problem)


async def _failed_response(request: Request, _: Exception) -> Response:
    problem = ProblemError(500, "internal_error", "the server failed; its log has the reason")
    return await _problem_response(request, problem)


async def _openapi(_: Request) -> Response:
    return JSONResponse(openapi_document())
