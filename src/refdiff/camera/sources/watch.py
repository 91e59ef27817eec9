"""When a reader has waited too long, when it is started again, and when its source is given up.

Plain arithmetic on times that are given: nothing here waits or reads a clock.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from refdiff.camera.sources.fault import SourceFault


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a source may be silent, and how often it is tried again. Times are in s."""

    first_frame_timeout_s: float = 20.0
    """From the start of the reader to its first frame."""
    stall_timeout_s: float = 5.0
    """Between two frames. Raise it for a camera that delivers fewer than one in this time."""
    open_attempts: int = 3
    """For a source that has never delivered a frame, and for a file. Faults that another try cannot change,
    such as a wrong password, end the first one."""
    reconnect_attempts: int | None = None
    """For a live source that has delivered frames, since the last one; None for any number."""
    reconnect_for_s: float | None = None
    """Likewise, in time since the last frame."""
    backoff_s: tuple[float, float] = (1.0, 30.0)
    """Shortest and longest pause before another try; in between, pauses double and are spread at random."""


class Watch:
    """The clock of one source across all its readers.

    Args:
        limits: see `Limits`.
        recorded: whether the source is a file, whose faults come back at the same place.
        rng: spreads the pauses, so that many machines do not come back at once.
    """

    def __init__(self, limits: Limits, *, recorded: bool, rng: random.Random) -> None:
        self._limits = limits
        self._recorded = recorded
        self._rng = rng
        self._alive_s = 0.0
        self._last_frame_s: float | None = None
        self._run_first_s: float | None = None
        self._blocked = False
        self._failures = 0
        self._pause_s = 0.0
        self.attempt = 0
        """Starts of a reader since the last frame."""
        self.opened = False
        """Whether there ever was a frame."""

    def start(self, now: float) -> None:
        """Note that a reader is started."""
        self.attempt += 1
        self._alive_s = now
        self._run_first_s = None
        self._blocked = False

    def frame(self, now: float) -> bool:
        """Note a frame, and return whether it is the first of its reader."""
        first = self._run_first_s is None
        if first:
            self._run_first_s = now
        self._alive_s = self._last_frame_s = now
        self.opened, self.attempt, self._blocked = True, 0, False
        return first

    def alive(self, now: float) -> None:
        """Note that the reader passes over frames that were already handed over."""
        self._alive_s = now

    def block(self) -> None:
        """Note that the reader waits for a slot, which is no stall."""
        self._blocked = True

    def release(self, now: float) -> None:
        """Note that a slot was given back."""
        if self._blocked:
            self._alive_s = now

    def deadline(self, held: int) -> float | None:
        """Return when the reader has been silent for too long.

        Args:
            held: slots that the reader waits for.

        Returns:
            None while it cannot go on for want of a slot.
        """
        if self._blocked and held:
            return None
        first = self._run_first_s is None
        limit_s = self._limits.first_frame_timeout_s if first else self._limits.stall_timeout_s
        return self._alive_s + limit_s

    def silence(self, damaged: int) -> SourceFault:
        """Return the fault of a reader that was silent for too long.

        Args:
            damaged: frames that it could not decode.
        """
        also = f"; {damaged} frames could not be decoded" if damaged else ""
        if self._run_first_s is None:
            limit_s = self._limits.first_frame_timeout_s
            return SourceFault(kind="timeout", reason=f"no first frame within {limit_s:g} s{also}")
        limit_s = self._limits.stall_timeout_s
        return SourceFault(kind="stalled", reason=f"no further frame within {limit_s:g} s{also}")

    def pause(self, fault: SourceFault, now: float) -> float | None:
        """Return how long to wait before another try; None to give the source up."""
        if self._gives_up(fault, now):
            return None
        shortest, longest = self._limits.backoff_s
        lasted_s = 0.0 if self._run_first_s is None else now - self._run_first_s
        if self._run_first_s is not None and lasted_s >= max(shortest, self._pause_s):
            self._failures = 0
        at_once = self._run_first_s is not None and fault.kind in ("crashed", "stalled")
        if at_once and self._failures == 0:
            self._pause_s = 0.0
        else:
            top = min(longest, shortest * 2.0 ** min(self._failures + 1, 30))
            self._pause_s = self._rng.uniform(min(max(shortest, top / 2), longest), top)
        self._failures += 1
        return self._pause_s

    def _gives_up(self, fault: SourceFault, now: float) -> bool:
        limits = self._limits
        if not self.opened or self._recorded:
            return fault.hopeless or self.attempt >= limits.open_attempts
        if fault.kind in ("input", "missing"):
            return True
        silent_s = now - (self._last_frame_s or now)
        tried = limits.reconnect_attempts is not None and self.attempt >= limits.reconnect_attempts
        return tried or (limits.reconnect_for_s is not None and silent_s >= limits.reconnect_for_s)
