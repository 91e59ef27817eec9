"""The messages of a live session.

client  a binary message is one picture file; they are numbered from 0 in the order they are sent
        {"type": "phrases", "phrases": [...]}    what to follow from now on; none: nothing
server  {"type": "hello", ...}    the limits
        {"type": "taken", "frame": n}    the next frame may be sent
        {"type": "result", "frame": n, "size": [width, height], "latency_ms", "targets", "events"}
        {"type": "error", "message"}    a frame or phrases that cannot be used; the session goes on
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections import deque
from typing import Any

from PIL import Image, UnidentifiedImageError

from refdiff.camera.frame import FrameResult, TargetResult
from refdiff.contracts.session import ImageArray
from refdiff.errors import InputError
from refdiff.runtime.image import read_image
from refdiff.serve.response import encode_mask

_MOST_TEXT = 1 << 16
_WAITING = 32
"""Most errors, and most events of results that were left out, which wait for a slow client."""
_FORMATS = ("JPEG", "PNG", "WEBP")


class Outbox:
    """What goes to the client: errors, the number of the last frame that was taken, and the newest result.

    `next` is called in the event loop, all other methods in any thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._filled = asyncio.Event()
        self._lock = threading.Lock()
        self._notes: deque[dict[str, Any]] = deque(maxlen=_WAITING)
        self._result: dict[str, Any] | None = None
        self._taken: int | None = None

    def note(self, message: dict[str, Any]) -> None:
        """Add a message; the oldest is left out if too many wait."""
        with self._lock:
            self._notes.append(message)
        self._wake()

    def take_note(self, number: int) -> None:
        """Say that a frame was taken, and every earlier one too."""
        with self._lock:
            self._taken = number
        self._wake()

    def put_result(self, message: dict[str, Any]) -> None:
        """Put a result in the place of the one that waits, whose events it takes over."""
        with self._lock:
            if self._result is not None:
                message["events"] = [*self._result["events"], *message["events"]][-_WAITING:]
            self._result = message
        self._wake()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._filled.set)
        except RuntimeError:  # the loop is closed: the server has ended
            return

    async def next(self) -> list[str]:
        """Wait for messages; return them as JSON texts."""
        await self._filled.wait()
        self._filled.clear()
        with self._lock:
            taken = [] if self._taken is None else [{"type": "taken", "frame": self._taken}]
            result = [] if self._result is None else [self._result]
            messages = [*taken, *self._notes, *result]
            self._notes.clear()
            self._taken = self._result = None
        return [json.dumps(each) for each in messages]


def decode_frame(data: bytes, most_px: int) -> ImageArray:
    """Decode a frame to [y, x, 3] RGB; a large one is refused before it is decoded.

    Raises:
        InputError: it is too large, damaged, or of another format.
    """
    _check_head(data, most_px)
    return read_image(data, name="the frame")


def _check_head(data: bytes, most_px: int) -> None:
    """Refuse a picture that is too large, by its head alone.

    Raises:
        InputError: it is, or it is of another format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            width, height = picture.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError("got a frame that is no picture, expected JPEG, PNG or WebP") from error
    if width * height > most_px:
        raise InputError(
            f"got a frame of {width}x{height} px, expected at most {most_px} px; send smaller ones"
        )


def read_phrases(text: str) -> tuple[str, ...] | None:
    """Return the phrases of a client's message; None if it is another text."""
    try:
        message = json.loads(text) if len(text) <= _MOST_TEXT else None
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or message.get("type") != "phrases":
        return None
    phrases = message.get("phrases")
    if not isinstance(phrases, list) or not all(isinstance(each, str) for each in phrases):
        return None
    return tuple(phrases)


def result_message(result: FrameResult) -> dict[str, Any]:
    """Return a result as a message; masks are rings of [x, y] in px, holes included as rings of their own."""
    height, width = result.frame.size_yx
    return {
        "type": "result",
        "frame": result.frame.number,
        "size": [width, height],
        "latency_ms": round(1e3 * result.latency_s, 1),
        "targets": [_target(each) for each in result.targets],
        "events": [
            {"kind": each.kind, "phrase": each.phrase, "frame": each.frame, "reason": each.reason}
            for each in result.events
        ],
    }


def _target(target: TargetResult) -> dict[str, Any]:
    return {
        "phrase": target.phrase,
        "state": target.state,
        "masks": None if target.mask is None else encode_mask(target.mask, "polygon"),
        "origin": target.origin,
        "age_s": None if target.age_s is None else round(target.age_s, 3),
        "key_frame": target.key_number,
        "confidence": target.confidence,
        "score": target.score,
        "reason": target.reason,
        "cautions": list(target.cautions),
    }
