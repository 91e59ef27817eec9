"""Options of a run of a camera, and the changes that a caller makes while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Literal

from refdiff.camera.sources.source import DEFAULT_SOURCE, SourceOptions
from refdiff.camera.target import TrackOptions
from refdiff.contracts.options import DEFAULT_RUN, RunOptions
from refdiff.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """Options of masks that follow phrases through frames."""

    run: RunOptions = DEFAULT_RUN
    """What is computed for a key frame."""
    source: SourceOptions = DEFAULT_SOURCE
    """How a source given as a text is opened and read."""
    track: TrackOptions = field(default_factory=TrackOptions)
    """How masks are followed, and when they are stale or lost."""
    key: float | Literal["auto", "change"] = "auto"
    """When the whole pipeline answers a frame: `auto`, back to back, of a file every second of the video; a
    number, at most once in so many seconds, but at once for a target that is stale or lost; `change`, for
    such targets and for new phrases only."""
    most_failures: int = 3
    """Key frames in a row that may fail; the error of the last one ends the run."""
    max_frames: int | None = None
    """End after so many results; None: with the source."""
    seconds: float | None = None
    """End after so many seconds; None: with the source."""

    def check(self) -> None:
        """Refuse values without a meaning.

        Raises:
            InputError: names the first one.
        """
        fits = {
            "key": self.key in ("auto", "change")
            or (isinstance(self.key, (int, float)) and 0 <= self.key < float("inf")),
            "most_failures": self.most_failures > 0,
            "max_frames": self.max_frames is None or self.max_frames > 0,
            "seconds": self.seconds is None or self.seconds > 0,
        }
        for name, good in fits.items():
            if not good:
                raise InputError(f"got {name}={getattr(self, name)!r}, expected what CameraOptions describes")


DEFAULT_CAMERA = CameraOptions()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a caller wants to be followed, and how; replaced as a whole."""

    phrases: tuple[str, ...]
    run: RunOptions
    paused: bool = False


class Wishes:
    """Carries changes from any thread to the track lane."""

    def __init__(self, wanted: Wanted) -> None:
        self._lock = Lock()
        self.wanted = wanted
        self.key_asked = Event()

    def change(self, alter: Callable[[Wanted], Wanted]) -> Wanted:
        """Replace what is wanted, and return it."""
        with self._lock:
            self.wanted = alter(self.wanted)
            return self.wanted
