"""The paths of KServe v2, the Open Inference Protocol, over HTTP.

Errors are {"error": message}, as the protocol wants them (`guard.error_document`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from refdiff import __version__
from refdiff.errors import RefdiffError
from refdiff.serve.open_inference import HEADER_LENGTH, InferenceRequest, read_request, write_response
from refdiff.serve.service import AnswerService, ProblemError, client_gone, problem_of
from refdiff.serve.tensors import (
    INPUTS,
    MODEL_NAME,
    MODEL_VERSION,
    OUTPUTS,
    Question,
    Row,
    read_question,
    row_of,
    stack_rows,
)

Handler = Callable[[Request], Awaitable[Response]]


def kserve_routes(service: AnswerService) -> list[Route]:
    """Return the routes below /v2; the server has the one model `refdiff` in version 1."""
    own = _Handlers(service)
    model = "/v2/models/{model}"
    routes = [Route("/v2", own.server), Route("/v2/health/live", own.live)]
    routes.append(Route("/v2/health/ready", own.ready))
    for folder in (model, f"{model}/versions/{{version}}"):
        routes += [
            Route(folder, _of_model(own.metadata)),
            Route(f"{folder}/ready", _of_model(own.ready)),
            Route(f"{folder}/config", _of_model(own.config)),
            Route(f"{folder}/infer", _of_model(own.infer), methods=["POST"]),
        ]
    return routes


def _of_model(handler: Handler) -> Handler:
    """Return a handler that refuses other models and versions."""

    async def handle(request: Request) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", MODEL_VERSION)
        if name != MODEL_NAME:
            raise ProblemError(404, "unknown_model", f"got model {name[:80]!r}, expected {MODEL_NAME}")
        if version != MODEL_VERSION:
            text = f"got version {version[:80]!r} of {MODEL_NAME}, expected {MODEL_VERSION}"
            raise ProblemError(404, "unknown_model", text)
        return await handler(request)

    return handle


class _Handlers:
    """Answers the requests below /v2."""

    def __init__(self, service: AnswerService) -> None:
        self._service = service

    async def server(self, _: Request) -> Response:
        """Describe the server."""
        extensions = ["binary_tensor_data", "model_configuration"]
        return JSONResponse({"name": "refdiff", "version": __version__, "extensions": extensions})

    async def live(self, _: Request) -> Response:
        """Answer 200 as long as the engines' thread runs."""
        live = self._service.live
        return JSONResponse({"live": live}, status_code=200 if live else 503)

    async def ready(self, _: Request) -> Response:
        """Answer 200 while requests are answered."""
        ready = self._service.ready
        return JSONResponse({"name": MODEL_NAME, "ready": ready}, status_code=200 if ready else 503)

    async def metadata(self, _: Request) -> Response:
        """Describe inputs and outputs."""
        return JSONResponse(
            {
                "name": MODEL_NAME,
                "versions": [MODEL_VERSION],
                "platform": "refdiff",
                "inputs": [each.metadata() for each in INPUTS],
                "outputs": [each.metadata() for each in OUTPUTS],
            }
        )

    async def config(self, _: Request) -> Response:
        """Describe the model as Triton's extension "model configuration" does."""
        return JSONResponse(
            {
                "name": MODEL_NAME,
                "platform": "refdiff",
                "max_batch_size": 0,
                "input": [each.config() for each in INPUTS],
                "output": [each.config() for each in OUTPUTS],
            }
        )

    async def infer(self, request: Request) -> Response:
        """Answer all phrases."""
        self._service.check_accepting()
        try:
            asked, question = await asyncio.to_thread(
                _read, await _body(request), request.headers.get(HEADER_LENGTH)
            )
            answers = await self._service.ask(question.prompts, image=question.image)
            rows: list[Row] = []
            async with aclosing(answers.each(request)) as found:
                async for _, answer in found:
                    rows.append(row_of(answer, tuple(asked.outputs), len(question.prompts)))
            body, head = await asyncio.to_thread(_write, asked, rows)
        except RefdiffError as error:
            raise problem_of(error) from None
        if head is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={HEADER_LENGTH: str(head)})


async def _body(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        text = f"got a body of encoding {encoding[:40]!r}, expected none; send it uncompressed"
        raise ProblemError(415, "unsupported_media", text)
    try:
        return await request.body()
    except ClientDisconnect:
        raise client_gone() from None


def _read(body: bytes, header_length: str | None) -> tuple[InferenceRequest, Question]:
    asked = read_request(body, header_length)
    return asked, read_question(asked.tensors)


def _write(asked: InferenceRequest, rows: list[Row]) -> tuple[bytes, int | None]:
    return write_response(asked, stack_rows(rows, tuple(asked.outputs)))
