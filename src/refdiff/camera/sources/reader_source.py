"""A source that a reader process reads; the reader is watched, killed and started again, while we go on.

A blocked read cannot be interrupted inside a process, so the reader is a child that can be killed. One thread
here listens to it; `read` waits for that thread, and copies the pixels out of the shared memory.
"""

from __future__ import annotations

import logging
import random
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from refdiff.camera.frame import Frame, SourceCounts, SourceEvent
from refdiff.camera.sources.fault import SourceFault
from refdiff.camera.sources.process import Inbox, Launch, Run, WaitingFrame, release
from refdiff.camera.sources.watch import Limits, Watch
from refdiff.errors import RefdiffError

_LOG = logging.getLogger(__name__)

_KEPT_EVENTS = 1000
_SAID_MORE = frozenset({"closed", "codec", "unknown"})
"""Faults whose reason gets the last lines of stderr."""

_CLOSED = SourceFault(kind="closed", reason="closed here")


class ReaderSource:
    """A `FrameSource` whose frames come from a reader process; it starts at once.

    Args:
        name: the source's, without credentials.
        request: what the reader is asked for; see `reader.py`.
        launch: starts a reader.
        limits: when it is watched, started again and given up.
        rng: spreads the pauses between two tries.
    """

    def __init__(
        self,
        name: str,
        request: Mapping[str, Any],
        launch: Launch,
        limits: Limits,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self._name = name
        self._request = request
        self._launch = launch
        self._newest = bool(request["newest"])
        self._watch = Watch(
            limits,
            recorded=bool(request["recorded"]),
            rng=rng or random.Random(),  # noqa: S311 - no secret
        )
        self._changed = threading.Condition()
        self._waiting: deque[WaitingFrame] = deque()
        self._events: deque[SourceEvent] = deque(maxlen=_KEPT_EVENTS)
        self._captured = self._delivered = self._reconnects = 0
        self._dropped: Counter[str] = Counter()
        self._size_yx: tuple[int, int] | None = None
        self._run: Run | None = None
        self._finished = self._closed = self._unraised = False
        self._failure: RefdiffError | Exception | None = None
        self._closing = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._wake.settimeout(0)
        self._thread = threading.Thread(target=self._supervise, name="refdiff-source", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise SourceFault(kind="resources", reason=str(error)).error(
                name, opened=False, tries=1
            ) from error

    def __repr__(self) -> str:
        """Return the source's name, without credentials."""
        return f"ReaderSource({self._name!r})"

    def __enter__(self) -> ReaderSource:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source."""
        self.close()

    @property
    def name(self) -> str:
        """The source as it was given, without credentials."""
        return self._name

    @property
    def reader_pid(self) -> int | None:
        """The number of the process that reads now; None between two."""
        with self._changed:
            return None if self._run is None else self._run.reader.pid

    @property
    def live(self) -> bool:
        """Whether frames come at their own pace."""
        return not self._request["recorded"] or self._request["pace"] == "real"

    @property
    def ended(self) -> bool:
        """Whether no further frame will come, and `read` has raised what there is to raise."""
        with self._changed:
            return self._closed or (self._finished and not self._waiting and not self._unraised)

    def read(self, timeout_s: float) -> Frame | None:
        """Wait for the next frame; see `FrameSource.read`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._finished or self._closed, timeout_s)
            if self._closed or not self._waiting:
                if self._failure is not None and not self._closed and self._finished:
                    self._unraised = False
                    raise self._failure
                return None
            waiting = self._waiting.popleft()
            self._delivered += 1
        pixels = waiting.ring.pixels(waiting.place[1], waiting.size_yx).copy()
        pixels.flags.writeable = False
        with self._changed:
            self._give_back(waiting)
        return Frame(
            source=self._name,
            number=waiting.number,
            pixels=pixels,
            captured_s=waiting.captured_s,
            wall_s=waiting.wall_s,
            pts_s=waiting.pts_s,
        )

    def counts(self) -> SourceCounts:
        """Return what became of the frames so far."""
        with self._changed:
            inside = 0 if self._run is None else self._run.inside
            return SourceCounts(
                captured=self._captured,
                delivered=self._delivered,
                dropped=dict(self._dropped),
                reconnects=self._reconnects,
                waiting=len(self._waiting) + inside,
            )

    def take_events(self) -> list[SourceEvent]:
        """Return the events since the last call, oldest first."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
            return events

    def close(self) -> None:
        """End the reader and drop what waits; calling it twice is fine."""
        with self._changed:
            self._closed = True
            self._closing.set()
            self._changed.notify_all()
        self._nudge()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        with self._changed:
            self._dropped["closed"] += len(self._waiting)
            self._dropped += Counter()  # leaves out a zero
            self._waiting.clear()
        self._wake.close()
        self._woken.close()

    def _supervise(self) -> None:
        try:
            while (fault := self._run_reader()) is not None and not self._closing.is_set():
                if not self._prepare_retry(fault):
                    return
        except Exception as error:
            _LOG.exception("source %s: the thread that listens to its reader failed", self._name)
            self._failure = error
        finally:
            with self._changed:
                self._finished = True
                self._unraised = self._failure is not None
                if self._failure is None and not self._closed:
                    self._note("ended", "the source has ended")
                self._changed.notify_all()

    def _prepare_retry(self, fault: SourceFault) -> bool:
        """Wait before another try, and return whether there is one."""
        with self._changed:
            attempt = self._watch.attempt
            pause_s = self._watch.pause(fault, time.monotonic())
            kind = "stalled" if fault.kind == "stalled" else "failed"
            self._note(kind, fault.reason, attempt=attempt, cause=fault.kind)
            if pause_s is None:
                self._failure = fault.error(self._name, opened=self._watch.opened, tries=attempt)
                return False
            self._note("reconnecting", f"again in {pause_s:.1f} s", attempt=attempt + 1, cause=fault.kind)
        return not self._closing.wait(pause_s)

    def _run_reader(self) -> SourceFault | None:
        """Run one reader to its end, and return why it is not the end of the source, or None."""
        request = self._next_request()
        if request is None:
            return None
        with self._changed:
            self._watch.start(time.monotonic())
        try:
            reader = self._launch(request)
        except OSError as error:
            return SourceFault(kind="resources", reason=f"no process can be started: {error.strerror}")
        run = Run(reader, Inbox(reader.connection), self._captured)
        with self._changed:
            self._run = run
        try:
            fault = self._listen(run)
            if fault is not None and fault.kind in _SAID_MORE and (said := reader.last_words()):
                fault = SourceFault(kind=fault.kind, reason=f"{fault.reason}: {said}")
            return fault
        finally:
            reader.kill()
            run.inbox.close()
            self._account(run)

    def _next_request(self) -> dict[str, Any] | None:
        """Return what the next reader is asked for; None if nothing is left to read."""
        limit, captured = self._request["limit"], self._captured
        resumes = self._request["recorded"] and not self._request["loop"]
        if resumes or limit is None:
            return {**self._request, "skip": captured if resumes else 0}
        return {**self._request, "limit": limit - captured} if limit > captured else None

    def _account(self, run: Run) -> None:
        """Count what a reader has taken with it."""
        with self._changed:
            self._run = None
            if run.inside:
                self._dropped["closed" if self._closed else "killed"] += run.inside

    def _listen(self, run: Run) -> SourceFault | None:
        with selectors.DefaultSelector() as selector:
            selector.register(run.reader.connection, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing.is_set():
                with self._changed:
                    deadline = self._watch.deadline(run.held)
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready = [key.fileobj for key, _ in selector.select(left_s)]
                if self._woken in ready:
                    self._woken.recv(4096)
                if run.reader.connection in ready:
                    final, fault = self._take_messages(run)
                    if final:
                        return fault
                elif not ready and left_s is not None:
                    return self._watch.silence(run.dropped["damaged"])
        return _CLOSED

    def _take_messages(self, run: Run) -> tuple[bool, SourceFault | None]:
        """Take what a reader has sent; return whether it has ended, and why."""
        for message in run.inbox.receive():
            with self._changed:
                self._take(run, message)
            if "end" in message:
                return True, None
            if "fault" in message:
                return True, SourceFault(**message["fault"])
        run.reader.trim()
        return (True, run.reader.explain()) if run.inbox.closed else (False, None)

    def _take(self, run: Run, message: Mapping[str, Any]) -> None:
        run.count = message["count"]
        self._captured = run.first + run.count
        dropped = Counter[str](message["dropped"])
        self._dropped += dropped - run.dropped
        run.dropped = dropped
        if "frame" in message:
            self._take_frame(run, message)
        elif "opened" in message:
            run.description = message["opened"]
        elif "blocked" in message:
            self._watch.block()
        elif "skipping" in message:
            self._watch.alive(time.monotonic())

    def _take_frame(self, run: Run, message: Mapping[str, Any]) -> None:
        index, height, width, captured_s, wall_s, pts_s = message["frame"]
        generation, slot = message["slot"]
        run.taken += 1
        run.held += 1
        self._note_first(run, (height, width))
        while self._newest and self._waiting:
            self._dropped["newest"] += 1
            self._give_back(self._waiting.popleft())
        self._waiting.append(
            WaitingFrame(
                run=run,
                ring=run.inbox.rings[generation],
                place=(generation, slot),
                size_yx=(height, width),
                number=run.first + index,
                captured_s=captured_s,
                wall_s=wall_s,
                pts_s=pts_s,
            )
        )
        self._changed.notify_all()

    def _note_first(self, run: Run, size_yx: tuple[int, int]) -> None:
        """Note what a frame says about the source, before it is handed over."""
        again, attempt = self._watch.opened, self._watch.attempt
        if self._watch.frame(time.monotonic()):
            self._reconnects += again
            self._note("opened", run.description, attempt=attempt if again else attempt - 1)
        if self._size_yx is not None and size_yx != self._size_yx:
            was = f"{self._size_yx[1]}x{self._size_yx[0]}"
            self._note("resized", f"from {was} to {size_yx[1]}x{size_yx[0]} px")
        self._size_yx = size_yx

    def _give_back(self, waiting: WaitingFrame) -> None:
        waiting.run.held -= 1
        release(waiting.run.reader.connection, *waiting.place)
        self._watch.release(time.monotonic())
        self._nudge()

    def _nudge(self) -> None:
        """Let the thread that listens compute its deadline again."""
        with suppress(OSError):  # full, so it is awake; or closed
            self._wake.send(b"\0")

    def _note(self, kind: str, reason: str, *, attempt: int = 0, cause: str = "") -> None:
        level = logging.WARNING if cause else logging.INFO  # an outage is shown while it lasts
        _LOG.log(level, "source %s: %s: %s", self._name, kind, reason)
        self._events.append(
            SourceEvent(kind=kind, reason=reason, at_s=time.monotonic(), attempt=attempt, cause=cause)
        )
