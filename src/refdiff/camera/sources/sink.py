"""The reader process's end of the ring: frames go in, messages and shared memory go to the parent.

A message is one line of JSON. `ring` comes with the file descriptor of new memory; `frame` hands a slot over;
`opened`, `blocked`, `skipping` and `damaged` state what the reader is doing; `end` or `fault` is the last
one. The parent answers with two bytes for each slot that it has read: the ring's generation and the slot.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from refdiff.camera.sources.fault import FaultError, SourceFault
from refdiff.camera.sources.ring import SLOTS, Ring, create_ring
from refdiff.contracts.session import ImageArray

_REPORT_S = 0.5
"""Least time between two reports of frames that are skipped or damaged."""

_LONGEST_WAIT_S = 1.0
"""A longer gap between two times of a file is cut to this: a watchdog would take it for a stall."""

LIMIT_PX = 50_000_000
"""Most pixels of a frame; 8K video has 33 million. A ring holds several frames."""

_FLUSH_S = 2.0

_Waiting = tuple[ImageArray, dict[str, Any]]


class ReadingDone(Exception):  # noqa: N818 - not an error
    """The number of frames that were wanted has been read."""


class FrameSink:
    """Takes the frames of a source in order, numbers them from 1, and hands them to the parent.

    Args:
        connection: the socket to the parent.
        newest: keep only the newest frame while no slot is free; else `publish` waits for a slot.
        skip: frames at the start that an earlier reader has handed over.
        limit: raise `ReadingDone` after so many frames, the skipped ones included.
        on_parent_end: called in another thread when the parent has closed the connection or ended.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        newest: bool,
        skip: int = 0,
        limit: int | None = None,
        on_parent_end: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._newest = newest
        self._skip = skip
        self._left = limit
        self._on_parent_end = on_parent_end
        self._changed = threading.Condition()
        self._ring: Ring | None = None
        self._generation = 0
        self._free: list[int] = []
        self._held: _Waiting | None = None
        self._index = 0
        self._dropped: Counter[str] = Counter()
        self._reported_s = 0.0
        threading.Thread(target=self._take_slots, daemon=True).start()

    def opened(self, description: str) -> None:
        """Report that the source is open, with one line that describes it."""
        self._send({"opened": description})

    def skipped(self) -> bool:
        """Return whether the next frame was handed over by an earlier reader, and pass over it if so.

        Raises:
            ReadingDone: it is the last one that was wanted.
        """
        if not self._skip:
            return False
        self._skip -= 1
        self._report("skipping")
        self._count_down()
        return True

    def drop(self, cause: str) -> None:
        """Count a frame that the source produced and that cannot be used."""
        if self.skipped():
            return
        with self._changed:
            self._index += 1
            self._dropped[cause] += 1
        self._report("damaged")
        self._count_down()

    def publish(
        self, pixels: ImageArray, *, captured_s: float, wall_s: float, pts_s: float | None = None
    ) -> None:
        """Hand over a frame; ask `skipped` first.

        Args:
            pixels: [y, x, 3] RGB; not changed by the caller afterwards.
            captured_s: `time.monotonic()` when it arrived.
            wall_s: `time.time()` of that moment.
            pts_s: the source's own time, None if it has none.

        Raises:
            ReadingDone: it is the last one that was wanted.
            FaultError: it is too large.
        """
        if pixels.shape[0] * pixels.shape[1] > LIMIT_PX:
            raise FaultError(
                "input",
                f"got frames of {pixels.shape[1]}x{pixels.shape[0]} px, expected {LIMIT_PX:,} px "
                "at most; let the source make them smaller",
            )
        with self._changed:
            if not self._newest:
                self._wait_for_slot(pixels)  # not counted yet: a reader that is killed now has not read it
            self._index += 1
            waiting = pixels, {"frame": [self._index, *pixels.shape[:2], captured_s, wall_s, pts_s]}
            if self._newest:
                self._hold(waiting)
            else:
                self._write(waiting)
        self._count_down()

    def finish(self, fault: SourceFault | None = None) -> None:
        """Report the end, or why there is no more."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._held is None, _FLUSH_S):
                self._held = None
                self._dropped["newest"] += 1
            if fault is None:
                self._send({"end": self._index})
            else:
                self._send({"fault": {"kind": fault.kind, "reason": fault.reason[:1500]}})

    def _hold(self, waiting: _Waiting) -> None:
        if self._held is not None:
            self._dropped["newest"] += 1
            self._held = None
        if self._free or not self._fits(waiting[0]):
            self._write(waiting)
        else:
            self._held = waiting

    def _wait_for_slot(self, pixels: ImageArray) -> None:
        def ready() -> bool:
            return bool(self._free) if self._fits(pixels) else self._ring is None or len(self._free) == SLOTS

        if not ready():
            self._send({"blocked": True})
            self._changed.wait_for(ready)

    def _fits(self, pixels: ImageArray) -> bool:
        size = pixels.shape[0] * pixels.shape[1] * 3
        return self._ring is not None and size <= self._ring.slot_bytes <= 4 * size + 65_536

    def _write(self, waiting: _Waiting) -> None:
        pixels, message = waiting
        size_yx = pixels.shape[0], pixels.shape[1]
        if self._ring is None or not self._fits(pixels):
            self._replace_ring(size_yx)
        assert self._ring is not None  # noqa: S101 - just made
        slot = self._free.pop()
        self._ring.pixels(slot, size_yx)[...] = pixels
        self._send({**message, "slot": [self._generation, slot]})

    def _replace_ring(self, size_yx: tuple[int, int]) -> None:
        self._ring, descriptor = create_ring(size_yx)
        self._generation = (self._generation + 1) % 256
        self._free = list(range(SLOTS))
        line = _line({"ring": [self._generation, self._ring.slot_bytes]})
        try:
            socket.send_fds(self._connection, [line], [descriptor])
        finally:
            os.close(descriptor)

    def _take_slots(self) -> None:
        """Take back the slots that the parent has read, until it ends."""
        received = b""
        try:
            while chunk := self._connection.recv(256):
                received += chunk
                pairs, received = received[: len(received) & ~1], received[len(received) & ~1 :]
                with self._changed:
                    for generation, slot in zip(pairs[::2], pairs[1::2], strict=True):
                        self._take_slot(generation, slot)
                    self._changed.notify_all()
        except OSError:
            pass
        self._on_parent_end()

    def _take_slot(self, generation: int, slot: int) -> None:
        if generation != self._generation:
            return
        self._free.append(slot)
        if self._held is not None:
            waiting, self._held = self._held, None
            self._write(waiting)

    def _count_down(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                raise ReadingDone

    def _report(self, what: str) -> None:
        if time.monotonic() - self._reported_s > _REPORT_S:
            self._reported_s = time.monotonic()
            with self._changed:
                self._send({what: True})

    def _send(self, message: dict[str, Any]) -> None:
        self._connection.sendall(_line({**message, "count": self._index, "dropped": self._dropped}))


class Pace:
    """Plays the frames of a file at their own times.

    Args:
        real: wait for each frame's time; else every wait is empty.
    """

    def __init__(self, *, real: bool) -> None:
        self._real = real
        self._shift_s: float | None = None

    def wait(self, time_s: float | None) -> bool:
        """Wait until a frame's time has come, if it has to; a jump of the times starts a new count.

        Returns:
            Whether the frames are played at their own times.
        """
        if not self._real or time_s is None:
            return self._real
        now = time.monotonic()
        ahead_s = 0.0 if self._shift_s is None else time_s + self._shift_s - now
        wait_s = min(max(0.0, ahead_s), _LONGEST_WAIT_S)
        if self._shift_s is None or ahead_s != wait_s:
            self._shift_s = now + wait_s - time_s
        time.sleep(wait_s)
        return True


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
