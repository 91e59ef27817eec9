"""A source whose frames come from a callback, as those of a ROS subscription or of a camera's own library.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from refdiff.camera.frame import Frame, SourceCounts, SourceEvent
from refdiff.contracts.session import ImageArray
from refdiff.errors import InputError, MissingDependencyError, SourceError
from refdiff.runtime.image_file import check_size

PushPolicy = Literal["newest", "every"]
"""newest: a frame that was not read yet is dropped for a newer one. every: frames wait in a bounded queue,
and one that finds it full is dropped."""

Picture = ImageArray | Callable[[], ImageArray]
"""Pixels [y, x, 3] RGB, or a function that decodes them when the frame is read."""

_EVENTS = 256
"""Most events that wait for `take_events`."""


@dataclass(frozen=True, eq=False)
class _Pushed:
    number: int
    picture: Picture
    captured_s: float
    wall_s: float
    pts_s: float | None
    header: object | None


class PushSource:
    """Hands the frames that one thread pushes to another that reads them; `push` never waits.

    Args:
        name: what `Frame.source` and messages call it.
        policy: which frames are dropped when they come faster than they are read.
        capacity: most frames that wait, with policy `every`.
        live: whether frames come at their own pace.
        clock: monotonic time in s.

    Raises:
        InputError: an unknown policy, or a capacity below 1.
    """

    def __init__(
        self,
        name: str,
        *,
        policy: PushPolicy = "newest",
        capacity: int = 64,
        live: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if policy not in get_args(PushPolicy):
            raise InputError(f"got policy {policy!r}, expected one of: {', '.join(get_args(PushPolicy))}")
        if capacity < 1:
            raise InputError(f"got a capacity of {capacity} frames, expected 1 or more")
        self.name = name
        self._policy, self._live, self._clock = policy, live, clock
        self._capacity = 1 if policy == "newest" else capacity
        self._changed = threading.Condition()
        self._waiting: deque[_Pushed] = deque()
        self._events: deque[SourceEvent] = deque(maxlen=_EVENTS)
        self._dropped: Counter[str] = Counter()
        self._captured = self._delivered = 0
        self._finished = False
        self._size_yx: tuple[int, int] | None = None
        self._failure: str | None = None

    @property
    def live(self) -> bool:
        """Whether frames come at their own pace."""
        return self._live

    @property
    def ended(self) -> bool:
        """Whether `finish` or `close` was called and no frame waits."""
        with self._changed:
            return self._finished and not self._waiting

    def push(
        self,
        picture: Picture,
        *,
        captured_s: float | None = None,
        wall_s: float | None = None,
        pts_s: float | None = None,
        header: object | None = None,
    ) -> int | None:
        """Add a frame.

        Args:
            picture: pixels [y, x, 3] uint8 RGB, which are copied; or a function that returns such an array of
                its own. It is called by `read`, so that frames that are dropped cost nothing; an InputError
                that it raises drops the frame with the cause `undecodable`.
            captured_s: `time.monotonic()` of its arrival; now if left out.
            wall_s: `time.time()` of its arrival; now if left out.
            pts_s: the source's own time.
            header: handed through to `Frame.header`.

        Returns:
            The frame's number, whether or not it is dropped later; None after `finish` or `close`.

        Raises:
            InputError: pixels of another shape or dtype, or too many of them.
        """
        if not callable(picture):
            picture = _checked(picture, self.name).copy()
        now = self._clock() if captured_s is None else captured_s
        with self._changed:
            if self._finished:
                return None
            number, self._captured = self._captured, self._captured + 1
            self._make_room()
            if len(self._waiting) < self._capacity:
                wall = time.time() if wall_s is None else wall_s
                self._waiting.append(_Pushed(number, picture, now, wall, pts_s, header))
                self._changed.notify_all()
        return number

    def _make_room(self) -> None:
        """Drop what the policy drops where the queue is full."""
        if len(self._waiting) < self._capacity:
            return
        if self._policy == "newest":
            self._waiting.popleft()
        self._dropped["newest" if self._policy == "newest" else "full"] += 1

    def read(self, timeout_s: float) -> Frame | None:
        """Wait for the next frame that can be decoded; see `FrameSource.read`.

        Raises:
            SourceError: decoding needs a package that is not installed.
        """
        deadline = time.monotonic() + timeout_s
        while (pushed := self._next(deadline)) is not None:
            pixels = self._decode(pushed)
            if pixels is not None:
                return self._deliver(pushed, pixels)
        return None

    def _next(self, deadline: float) -> _Pushed | None:
        with self._changed:
            self._changed.wait_for(
                lambda: bool(self._waiting) or self._finished, max(0.0, deadline - time.monotonic())
            )
            return self._waiting.popleft() if self._waiting else None

    def _decode(self, pushed: _Pushed) -> ImageArray | None:
        """Return the pixels, read-only; None, with the drop counted, if they cannot be decoded."""
        try:
            picture = pushed.picture() if callable(pushed.picture) else pushed.picture
            pixels = _checked(picture, self.name).view()
        except InputError as error:
            with self._changed:
                self._dropped["undecodable"] += 1
                if str(error) != self._failure:  # a camera sends the same fault many times a second
                    self._failure = str(error)
                    self._note("failed", self._failure)
            return None
        except MissingDependencyError as error:
            raise SourceError(f"{self.name}: {error}") from error
        pixels.setflags(write=False)
        return pixels

    def _deliver(self, pushed: _Pushed, pixels: ImageArray) -> Frame:
        size_yx = (pixels.shape[0], pixels.shape[1])
        with self._changed:
            self._delivered += 1
            self._failure = None
            if self._size_yx != size_yx:
                kind = "opened" if self._size_yx is None else "resized"
                self._note(kind, f"{self.name}: {size_yx[1]}x{size_yx[0]} px")
                self._size_yx = size_yx
        return Frame(
            source=self.name,
            number=pushed.number,
            pixels=pixels,
            captured_s=pushed.captured_s,
            wall_s=pushed.wall_s,
            pts_s=pushed.pts_s,
            header=pushed.header,
        )

    def _note(self, kind: str, reason: str) -> None:
        self._events.append(SourceEvent(kind=kind, reason=reason, at_s=self._clock()))

    def counts(self) -> SourceCounts:
        """Return what became of the frames so far; those that wait are captured and not yet delivered."""
        with self._changed:
            return SourceCounts(
                captured=self._captured, delivered=self._delivered, dropped=dict(self._dropped)
            )

    def take_events(self) -> list[SourceEvent]:
        """Return the events since the last call, oldest first."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
        return events

    def finish(self) -> None:
        """Accept no further frame; those that wait can still be read."""
        with self._changed:
            if not self._finished:
                self._finished = True
                self._note("ended", f"{self.name}: no further frames")
            self._changed.notify_all()

    def close(self) -> None:
        """Accept no further frame and drop those that wait, counted as `closed`."""
        self.finish()
        with self._changed:
            if self._waiting:
                self._dropped["closed"] += len(self._waiting)
                self._waiting.clear()


def _checked(pixels: object, name: str) -> ImageArray:
    """Return pixels that are a picture.

    Raises:
        InputError: another type, dtype or shape, or too many pixels.
    """
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise InputError(f"{name}: got {got}, expected pixels [y, x, 3] RGB of uint8")
    check_size(pixels.shape[1], pixels.shape[0], name)
    return pixels
