"""What every request passes before it is answered: token, host, size and time of the body, id, log line.

An ASGI middleware; nothing here knows about images. The opening of a WebSocket passes it as well: a browser
opens one to any server for any page and sends no token by itself, so its `Origin` is checked, and the token
comes as a subprotocol.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from refdiff.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOGGER = logging.getLogger("refdiff.serve")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SWITCHED = 101
"""HTTP's status of a WebSocket that was opened."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
"""Headers of every answer."""

OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/"})
"""Paths that need no token: the probes of a supervisor, and the page, which asks for the token."""
OPEN_FOLDER = "/static/"

TOKEN_PROTOCOL = "bearer."  # noqa: S105 - a prefix
"""Begins the subprotocol of a WebSocket that holds the token, in URL-safe base64 without padding: a browser
cannot send other headers."""


def error_document(path: str, kind: str, message: str, request_id: object) -> dict[str, Any]:
    """Return the body of an error: our own document, and below /v2 that of the Open Inference Protocol."""
    if path == "/v2" or path.startswith("/v2/"):
        return {"error": message}
    return {"error": {"type": kind, "message": message, "request_id": request_id}}


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Limits of requests."""

    token: str | None = field(default=None, repr=False)
    """Token that every request needs, as a bearer token or as the password of basic auth; None: none."""
    hosts: frozenset[str] | None = None
    """Names of this server that a request's Host header may have, without the port: a page of another site
    whose name was pointed to this address is refused. None: any."""
    most_body_bytes: int = 32 << 20
    body_seconds: float = 30.0
    """Time in s for a request's body to arrive."""


class BodyError(Exception):
    """A body is too large or too slow.

    Args:
        status: of the answer.
        message: one line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """Wraps an application.

    Args:
        app: the application.
        options: the limits.
        metrics: counts every request.
        name_path: returns the pattern of a path, such as "/static/{name}", for metrics and log.
    """

    def __init__(
        self, app: App, options: GuardOptions, metrics: Metrics, name_path: Callable[[str], str]
    ) -> None:
        self._app, self._options, self._metrics, self._name_path = app, options, metrics, name_path
        self.running = 0
        """Requests in progress."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or the opening of a WebSocket, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        scope["request_id"] = exchange.id
        refusal = self._refuse(scope["path"], exchange)
        self.running += 1
        try:
            if refusal is not None:
                await exchange.refuse(*refusal)
            elif scope["type"] == "http":
                await self._app(scope, _LimitedBody(receive, exchange.headers, self._options), exchange.send)
            else:
                await self._app(scope, receive, exchange.send)
        except BodyError as error:
            await exchange.refuse(error.status, "invalid_request", str(error))
        except Exception:
            _LOGGER.exception("request %s failed", exchange.id)
            await exchange.refuse(500, "internal_error", "the server failed; its log has the reason")
        finally:
            self.running -= 1
            self._note(scope, exchange)

    def _refuse(self, path: str, exchange: _Exchange) -> tuple[int, str, str] | None:
        """Return status, type and message of a request that is not let in."""
        options, headers = self._options, exchange.headers
        host = headers.get("host", "").rpartition("@")[2]
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        if options.hosts is not None and name.lower() not in options.hosts:
            return (
                421,
                "wrong_host",
                f"this server is not {name[:80]!r}; use the address that it was started with",
            )
        origin = headers.get("origin")
        if origin is not None and (not host or origin.partition("://")[2] != host):
            return 403, "foreign_origin", "requests of pages of other sites are refused"
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or options.token is None:
            return None
        given = headers.get("authorization", "") or exchange.subprotocol_token
        if hmac.compare_digest(_token_of(given), options.token.encode()):
            return None
        return 401, "unauthorized", "expected the header Authorization: Bearer TOKEN with this server's token"

    def _note(self, scope: Scope, exchange: _Exchange) -> None:
        """Count and log a request, without its body and without its query."""
        seconds = time.perf_counter() - exchange.started
        path = "refused" if exchange.refused else self._name_path(scope["path"])
        status = exchange.status or 499  # the client went away before an answer
        self._metrics.requests.labels(path=path, status=status).inc()
        if status != _SWITCHED:  # a WebSocket is open as long as its client likes
            self._metrics.request_seconds.labels(path=path).observe(seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": exchange.id,
            "method": scope.get("method", "WEBSOCKET"),
            "path": path,
            "status": status,
            "ms": round(seconds * 1e3, 1),
        }
        if exchange.close_code is not None:
            line["close_code"] = exchange.close_code
        _LOGGER.info("%s", json.dumps(line))


def _token_of(authorization: str) -> bytes:
    """Return the token of a header: after "Bearer", or the password of "Basic", whatever the user's name."""
    kind, _, given = authorization.partition(" ")
    if kind == "Bearer":
        return given.encode()
    if kind.lower() != "basic":
        return b""
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


class _Exchange:
    """One request, or the opening of one WebSocket, and the head of its answer."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send, self._path = send, scope["path"]
        self._of_socket = scope["type"] == "websocket"
        self._prefix = "websocket.http" if self._of_socket else "http"
        if self._of_socket:  # some servers hand the header on as it is
            names = ",".join(scope.get("subprotocols", ())).split(",")
            scope["subprotocols"] = [each.strip() for each in names if each.strip()]
        self._protocols: list[str] = scope.get("subprotocols", [])
        self.started = time.perf_counter()
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        given = self.headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.status: int | None = None
        self.close_code: int | None = None
        """Code that the server closed a WebSocket with."""
        self.refused = False

    @property
    def subprotocol_token(self) -> str:
        """The token that a WebSocket's subprotocols hold, as the header Authorization has it; or nothing."""
        for each in self._protocols:
            if each.startswith(TOKEN_PROTOCOL):
                text = each[len(TOKEN_PROTOCOL) :]
                with suppress(ValueError):
                    token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
                    return f"Bearer {token.decode()}"
        return ""

    async def send(self, message: Message) -> None:
        """Send a part of the answer; its head gets the headers of every answer."""
        kind = message["type"]
        if kind == f"{self._prefix}.response.start":
            self.status = message["status"]
            own = {name for name, _ in message.get("headers", ())}
            more = [(name, value) for name, value in HEADERS if name not in own]
            headers = [*message.get("headers", ()), *more, (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
        elif kind == "websocket.accept":
            self.status = _SWITCHED
            message = {
                **message,
                "headers": [*message.get("headers", ()), (b"x-request-id", self.id.encode())],
            }
        elif kind == "websocket.close":
            self.close_code = message.get("code", 1000)
            self.status = self.status or 403  # what closing one that was not opened means
        await self._send(message)

    async def refuse(self, status: int, kind: str, text: str) -> None:
        """Answer with an error, unless the answer has begun; the connection is closed after it."""
        if self.status is not None:
            if self._of_socket and self.close_code is None:
                await self.send({"type": "websocket.close", "code": 1011, "reason": text[:120]})
            return
        self.refused = True
        body = json.dumps(error_document(self._path, kind, text, self.id)).encode()
        headers = [(b"content-type", b"application/json")]
        if not self._of_socket:  # the server adds these itself
            headers += [(b"connection", b"close"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        start = {"type": f"{self._prefix}.response.start", "status": status, "headers": headers}
        await self.send(start)
        await self.send({"type": f"{self._prefix}.response.body", "body": body})


class _LimitedBody:
    """Receives a request's body, and raises `BodyError` when it is too large or too slow."""

    def __init__(self, receive: Receive, headers: dict[str, str], options: GuardOptions) -> None:
        self._receive, self._options = receive, options
        self._ends = time.monotonic() + options.body_seconds
        self._bytes = 0
        self._complete = False
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > options.most_body_bytes:
            raise self._too_large()

    async def __call__(self) -> Message:
        """Return the next message; after the body only the end of the connection can come."""
        if self._complete:
            return await self._receive()
        left = max(0.0, self._ends - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), left)
        except asyncio.TimeoutError as error:
            raise BodyError(
                408, f"the body did not arrive within {self._options.body_seconds:g} s"
            ) from error
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._bytes > self._options.most_body_bytes:
            raise self._too_large()
        return message

    def _too_large(self) -> BodyError:
        limit = self._options.most_body_bytes
        return BodyError(413, f"the body has more than {limit} bytes; send a smaller image")
