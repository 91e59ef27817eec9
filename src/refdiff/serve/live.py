"""Live sessions: a browser's camera comes in over a WebSocket, masks that follow phrases go back.

`live_message` describes the messages. A mask belongs to the frame that its result names, and to no other. Of
frames that come faster than they are worked on, and of results that go out faster than the client reads, the
newest is kept.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from functools import partial

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from refdiff.camera.options import CameraOptions
from refdiff.camera.sources.push_source import PushSource
from refdiff.camera.target import TrackOptions
from refdiff.camera.track import Tracker
from refdiff.contracts.session import ImageArray
from refdiff.errors import InputError, RefdiffError
from refdiff.serve.live_message import Outbox, decode_frame, read_phrases, result_message
from refdiff.serve.request import Prompt
from refdiff.serve.service import AnswerService
from refdiff.serve.shared_engines import SharedEngines

PROTOCOL = "refdiff.live.v1"
"""The subprotocol that a client offers."""

_LOOK_S = 0.25
"""Seconds between two looks whether the session may go on."""
_CLOSE_S = 5.0
"""Time in s for a client to take the last message."""
_MOST_BAD_FRAMES = 20
"""Frames in a row that cannot be decoded; then the session ends."""


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """Limits of live sessions."""

    most_sessions: int = 1
    """Sessions at the same time; 0: none."""
    most_frame_bytes: int = 2 << 20
    most_frame_px: int = 1920 * 1440
    most_phrases: int = 6
    frames_per_second: float = 15.0
    """Rate that clients are asked to keep; frames that come faster are dropped."""
    idle_seconds: float = 30.0
    """Time in s without a frame, or without a client that reads, after which a session ends."""


def live_routes(service: AnswerService, options: LiveOptions) -> list[WebSocketRoute]:
    """Return the route of live sessions over the engines of a service."""
    return [WebSocketRoute("/v1/live", LiveSessions(service, options).serve)]


class LiveSessions:
    """Lets so many sessions in, and closes further ones with code 1013, which says to try again later."""

    def __init__(self, service: AnswerService, options: LiveOptions) -> None:
        self._service, self._options = service, options
        self._open = 0

    async def serve(self, socket: WebSocket) -> None:
        """Run one session until its client leaves, a limit is passed, or the server stops."""
        offered = socket.scope.get("subprotocols", ())
        await socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        if not self._service.ready:
            await _close(socket, 1001, "the server is starting or stopping")
            return
        if self._open >= self._options.most_sessions:
            self._service.metrics.rejected.labels(reason="live_full").inc()
            await _close(socket, 1013, "another live session is running; try again later")
            return
        session = _Session(socket, self._service, self._options)
        self._count(+1)
        try:
            await session.run()
        finally:
            self._count(-1)  # so that a page that is loaded again finds its place free
            await asyncio.to_thread(session.stop)

    def _count(self, change: int) -> None:
        self._open += change
        self._service.metrics.live_sessions.set(self._open)


class _EndError(Exception):
    """The session ends.

    Args:
        code: of the WebSocket's close message.
        reason: one line.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Session:
    """One client: its frames, its tracker and its messages."""

    def __init__(self, socket: WebSocket, service: AnswerService, options: LiveOptions) -> None:
        self._socket, self._service, self._options = socket, service, options
        self._outbox = Outbox(asyncio.get_running_loop())
        self._source = PushSource("the live camera", policy="newest")
        self._tracker: Tracker | None = None
        self._results: threading.Thread | None = None
        self._changing = threading.Lock()
        self._stopped = False
        self._frames = self._bad_frames = 0
        self._end: _EndError | None = None
        self._frame_s = time.monotonic()

    async def run(self) -> None:
        """Work until the end, and close the socket."""
        options = self._options
        limits = {"most_frame_bytes": options.most_frame_bytes, "most_frame_px": options.most_frame_px}
        rate = {"frames_per_second": options.frames_per_second, "most_phrases": options.most_phrases}
        self._outbox.note({"type": "hello", **limits, **rate})
        sending = asyncio.create_task(self._send())
        receiving = asyncio.create_task(self._receive())
        try:
            while not (sending.done() or receiving.done()):
                await asyncio.wait({sending, receiving}, timeout=_LOOK_S, return_when="FIRST_COMPLETED")
                self._check()
            for task in (receiving, sending):
                if task.done():
                    task.result()
        except _EndError as end:
            await _close(self._socket, end.code, str(end))
        except (WebSocketDisconnect, RuntimeError, OSError):  # the client has gone away
            pass
        finally:
            sending.cancel()
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    def _check(self) -> None:
        if self._end is not None:
            raise self._end
        if self._service.status.draining:
            raise _EndError(1001, "the server is stopping")
        limit = self._options.idle_seconds
        if time.monotonic() - self._frame_s > limit:
            raise _EndError(1008, f"no frame came within {limit:g} s")

    async def _receive(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data, text = message.get("bytes"), message.get("text")
            if data is not None:
                self._take_frame(data)
            elif text is not None:
                await self._take_text(text)

    def _take_frame(self, data: bytes) -> None:
        limit = self._options.most_frame_bytes
        if len(data) > limit:
            raise _EndError(1009, f"got a frame of {len(data)} bytes, expected at most {limit}")
        self._frame_s = time.monotonic()
        number, self._frames = self._frames, self._frames + 1  # as the source numbers them
        self._source.push(partial(self._decode, number, data))
        if self._tracker is None:  # nothing reads the source yet
            self._outbox.take_note(number)

    def _decode(self, number: int, data: bytes) -> ImageArray:
        """Decode a frame that the track lane takes; in its thread."""
        self._outbox.take_note(number)
        try:
            pixels = decode_frame(data, self._options.most_frame_px)
        except InputError as error:
            self._bad_frames += 1
            self._outbox.note({"type": "error", "message": str(error)})
            if self._bad_frames >= _MOST_BAD_FRAMES:
                self._end = _EndError(1007, f"{self._bad_frames} frames in a row cannot be decoded")
            raise
        self._bad_frames = 0
        return pixels

    async def _take_text(self, text: str) -> None:
        phrases = read_phrases(text)
        if phrases is None:
            raise _EndError(1007, 'expected {"type": "phrases", "phrases": ["the red mug"]}')
        if len(phrases) > self._options.most_phrases:
            most = self._options.most_phrases
            self._outbox.note(
                {"type": "error", "message": f"got {len(phrases)} phrases, expected at most {most}"}
            )
            return
        try:
            await asyncio.to_thread(self._follow, phrases)
        except InputError as error:
            self._outbox.note({"type": "error", "message": str(error)})

    def _follow(self, phrases: tuple[str, ...]) -> None:
        """Follow other phrases; with none, frames are dropped and nothing runs.

        Raises:
            InputError: one cannot be used; nothing is changed.
        """
        with self._changing:
            tracker = self._tracker
            if self._stopped:
                return
            if not phrases:
                if tracker is not None:
                    tracker.pause()
            elif tracker is None:
                self._open(phrases)
            else:
                tracker.set_phrases(phrases)
                if tracker.paused:
                    tracker.resume()

    def _open(self, phrases: tuple[str, ...]) -> None:
        worker = self._service.worker
        worker.check_prompts(tuple(Prompt(text=each) for each in phrases))
        tracker = Tracker(
            "the server's",
            self._source,
            phrases,
            options=CameraOptions(track=TrackOptions(level="points")),
            open_engines=partial(SharedEngines, worker),
        )
        self._tracker = tracker.__enter__()
        self._results = threading.Thread(
            target=self._hand_on, args=(tracker,), name="refdiff-live", daemon=True
        )
        self._results.start()

    def _hand_on(self, tracker: Tracker) -> None:
        """Hand the tracker's results to the client until it is closed; in a thread of its own."""
        try:
            for result in tracker:
                self._outbox.put_result(result_message(result))
        except RefdiffError as error:
            stopping = self._service.status.draining or not self._service.worker.alive
            self._end = _EndError(1001 if stopping else 1011, str(error)[:120])

    def stop(self) -> None:
        """Free what is open, once `run` has ended; waits for the session's threads."""
        with self._changing:
            self._stopped = True
            if self._tracker is not None:
                self._tracker.close()
        self._source.close()
        if self._results is not None:
            self._results.join()
        counts, frames = self._source.counts(), self._service.metrics.live_frames
        for outcome, number in {"delivered": counts.delivered, **counts.dropped}.items():
            frames.labels(outcome=outcome).inc(number)

    async def _send(self) -> None:
        while True:
            for text in await self._outbox.next():
                await self._send_text(text)

    async def _send_text(self, text: str) -> None:
        try:
            await asyncio.wait_for(self._socket.send_text(text), self._options.idle_seconds)
        except asyncio.TimeoutError as error:
            raise _EndError(1008, "the client does not read") from error


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    """Close a socket; a client that does not read is not waited for."""
    try:
        await asyncio.wait_for(socket.close(code, reason), _CLOSE_S)
    except (asyncio.TimeoutError, RuntimeError, OSError):
        return
