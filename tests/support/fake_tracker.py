"""A tracker without engines: the mask of every phrase is what is bright in the red channel."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from refdiff.camera.frame import FrameResult, State, TargetResult
from refdiff.camera.sources.push_source import PushSource
from refdiff.camera.summary import CameraSummary
from refdiff.errors import EngineError, InputError


class FakeTracker:
    """Answers the frames of a source at once.

    Args:
        source: read until it ends.
        phrases: what is followed at first.
        fails_at: number of the frame at which the engines fail.
        state: of every mask.
    """

    def __init__(
        self,
        source: PushSource,
        phrases: Sequence[str],
        *,
        fails_at: int | None = None,
        state: State = "seen",
    ) -> None:
        self.phrases = tuple(phrases)
        self.source = source
        self.fails_at = fails_at
        self.state: State = state
        self.version = 0
        self.opened = self.closed = self.paused = False
        self.results = 0
        self._stopped = threading.Event()

    def __enter__(self) -> FakeTracker:
        self.opened = True
        return self

    def __iter__(self) -> Iterator[FrameResult]:
        while not self._stopped.is_set() and not self.source.ended:
            frame = self.source.read(0.05)
            if frame is None or self.paused:
                continue
            if frame.number == self.fails_at:
                raise EngineError("the device is gone")
            found = frame.pixels[:, :, 0] > 128
            mask = found if found.any() else None
            targets = tuple(
                TargetResult(
                    phrase=phrase,
                    version=self.version,
                    state="lost" if mask is None else self.state,
                    mask=mask,
                    confidence=0.75,
                )
                for phrase in self.phrases
            )
            self.results += 1
            yield FrameResult(frame=frame, targets=targets)

    def close(self) -> None:
        self.closed = True
        self._stopped.set()
        self.source.close()

    def set_phrases(self, phrases: Sequence[str]) -> None:
        if "refused" in phrases:
            raise InputError("got the phrase 'refused', expected another one")
        self.phrases, self.version = tuple(phrases), self.version + 1

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def summary(self) -> CameraSummary:
        return CameraSummary(
            source=self.source.name,
            backend="fake",
            backend_reason="a test",
            seconds=1.0,
            frames_captured=self.source.counts().captured,
            results=self.results,
            key_frames=self.results,
            fps={"in": 1.0, "key": 1.0, "out": 1.0},
            delays_ms={"capture_to_out": {"n": 1, "p50": 1.0, "p90": 1.0, "p99": None, "max": 1.0}},
            states={},
            dropped=self.source.counts().dropped,
            key={"answered": self.results},
        )
