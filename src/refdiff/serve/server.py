"""Run the server: address and token, self-test, and a stop that answers what has been accepted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, silent
from refdiff.errors import InputError
from refdiff.serve.app import AppOptions, create_app
from refdiff.serve.guard import Guard, GuardOptions
from refdiff.serve.label_studio_image import LabelStudioImages, LabelStudioOptions
from refdiff.serve.live import LiveOptions
from refdiff.serve.metrics import Metrics
from refdiff.serve.service import Status
from refdiff.serve.worker import EngineWorker, opener, self_test

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_HEAD_BYTES = 1 << 16
_MOST_MESSAGE_BYTES = 4 << 20
"""Of a WebSocket; a session's own limit is lower, and says so in words."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Where the server listens, and what it allows."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that requests need."""
    no_token: bool = False
    """Allow an address that other machines reach, without a token."""
    most_waiting: int = 16
    """Requests that wait for the engines; more are refused with 429."""
    request_seconds: float = 120.0
    most_body_bytes: int = 32 << 20
    cache_bytes: int = 1 << 29
    """Bytes of encoded images to keep."""
    head_seconds: float = 10.0
    """Time in s for the head of the first request of a connection."""
    label_studio_url: str | None = None
    """The Label Studio that the images of its tasks are fetched from; None: nothing is fetched."""
    label_studio_token: str | None = field(default=None, repr=False)
    grace_seconds: float = 30.0
    """Time in s for running answers when the server is stopped."""
    most_live: int = 1
    """Live sessions at the same time; 0: none."""
    share: bool = False
    """Whether the page offers to share overlays."""


def serve(
    bundle: Path | str,
    *,
    serving: ServeOptions | None = None,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    progress: Progress | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a bundle over HTTP until SIGTERM or SIGINT.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        serving: address and limits.
        options: what is computed.
        backend: where and how the graphs run.
        progress: called with one line at each step.
        on_ready: called with the server's address once requests are answered.

    Raises:
        InputError: an address for other machines without a token, or a port that is in use.
        EngineError: the self-test failed.
        RefdiffError: the bundle cannot be loaded.
    """
    serving, progress = serving or ServeOptions(), progress or silent
    check_address(serving)
    listener = listen(serving)
    with listener:
        metrics, status = Metrics(), Status(tested=True)
        worker = open_worker(bundle, serving, options, backend, metrics, progress)
        try:
            app = create_app(worker, options=app_options(serving), metrics=metrics, status=status)
            Server(app, status, serving, on_ready).run(sockets=[listener])
        finally:
            worker.close()


def check_address(serving: ServeOptions) -> None:
    """Refuse an address that other machines reach, without a token, and an address of no Label Studio.

    Raises:
        InputError: it has none, or one of a few characters.
    """
    LabelStudioImages(LabelStudioOptions(url=serving.label_studio_url))
    if serving.token is not None and len(serving.token) < 16:
        raise InputError("got a token of fewer than 16 characters; make one with: openssl rand -hex 16")
    if serving.host not in LOOPBACK and serving.token is None and not serving.no_token:
        raise InputError(
            f"{serving.host} can be reached by other machines; set --token, or --no-token to allow it"
        )


def open_worker(
    bundle: Path | str,
    serving: ServeOptions,
    options: RunOptions,
    backend: BackendOptions,
    metrics: Metrics,
    progress: Progress,
) -> EngineWorker:
    """Test a bundle on its golden tensors, then open its engines in a worker, which is started.

    Raises:
        EngineError: the bundle does not give its golden answers here.
        RefdiffError: it cannot be loaded.
    """
    progress("testing the bundle on its golden tensors")
    self_test(bundle, backend, progress)
    progress("loading the engines")
    worker = EngineWorker(
        opener(bundle, options, backend, metrics),
        take_stages=metrics.take_stages,
        most_waiting=serving.most_waiting,
        cache_bytes=serving.cache_bytes,
    )
    worker.start()
    return worker


@contextlib.contextmanager
def logging_requests() -> Iterator[None]:
    """Write the server's log to stderr, one line per request."""
    log, uvicorn_log = logging.getLogger("refdiff.serve"), logging.getLogger("uvicorn.error")
    before = log.level, log.propagate, uvicorn_log.level
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    uvicorn_log.setLevel(logging.ERROR)  # it warns of each malformed request
    try:
        yield
    finally:
        log.removeHandler(handler)
        level, log.propagate, uvicorn_level = before
        log.setLevel(level)
        uvicorn_log.setLevel(uvicorn_level)


def listen(serving: ServeOptions) -> socket.socket:
    """Return a socket that listens at the address.

    Raises:
        InputError: the port is in use, or the address is not one of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
        return socket.create_server((serving.host, serving.port), family=family, backlog=128)
    except OSError as error:
        raise InputError(
            f"cannot listen at {serving.host}:{serving.port} ({error.strerror}); choose another --port"
        ) from error


def app_options(serving: ServeOptions) -> AppOptions:
    """Return the options of the application at an address."""
    local = serving.host in LOOPBACK
    guard = GuardOptions(
        token=serving.token,
        hosts=frozenset(LOOPBACK) if local else None,
        most_body_bytes=serving.most_body_bytes,
    )
    studio = LabelStudioOptions(
        url=serving.label_studio_url,
        token=serving.label_studio_token,
        most_bytes=serving.most_body_bytes,
    )
    return AppOptions(
        guard=guard,
        request_seconds=serving.request_seconds,
        live=LiveOptions(most_sessions=serving.most_live),
        share=serving.share,
        label_studio=studio,
    )


class _Protocol(H11Protocol):
    """Closes a connection whose first request does not arrive in time."""

    def __init__(self, *args: Any, head_seconds: float, **named: Any) -> None:
        super().__init__(*args, **named)
        self._head_seconds = head_seconds

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self._head_seconds, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._head_timer.cancel()
        super().handle_websocket_upgrade(event)

    def _close_if_silent(self) -> None:
        if getattr(self, "cycle", None) is None:
            self.transport.close()


class _SocketProtocol(WebSocketsSansIOProtocol):
    """Drops the connection of a client that does not take what was sent to it before the end."""

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.loop.call_later(self.close_timeout, self.transport.abort)


class Server(uvicorn.Server):
    """Stops in two steps: new requests get 503 while the running ones are answered; then it ends."""

    def __init__(
        self, app: Guard, status: Status, serving: ServeOptions, on_ready: Callable[[str], None] | None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",  # uvicorn would take uvloop where another package brings it
                http=cast("Any", partial(_Protocol, head_seconds=serving.head_seconds)),
                ws=_SocketProtocol,
                ws_max_size=_MOST_MESSAGE_BYTES,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=5,
            )
        )
        self._app, self._status, self._serving, self._on_ready = app, status, serving, on_ready
        self.loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and report the address."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if sockets and self._on_ready is not None:
            host, port, *_ = sockets[0].getsockname()
            self._on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - of a signal handler
        """Begin to stop; a second signal ends at once."""
        if self._status.draining or self.loop is None:
            self.force_exit = self.should_exit = True
            return
        self._status.draining = True
        self.loop.call_soon_threadsafe(self._begin_stop)

    def _begin_stop(self) -> None:
        self._stop = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._serving.grace_seconds
        while self._app.running and loop.time() < ends:
            await asyncio.sleep(0.05)
        self.should_exit = True
