"""What a run has measured: rates, delays, ages, and what became of every frame.

Everything here takes the same memory after a minute and after a month.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from refdiff.camera.frame import Frame, SourceCounts, TargetResult
from refdiff.reports.page import Section
from refdiff.reports.table import Cell, Column, Table, facts_table, numeric

_LEAST_S, _STEP, _BINS = 1e-4, 1.02, 816
"""Bins from 0.1 ms to 1000 s, each 2 % wider than the one before."""


class Quantiles:
    """Counts times in bins of 2 %: quantiles of any number of them, exact to 2 %."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, dtype=np.int64)
        self.n = 0
        self.largest_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one time."""
        place = np.log(max(seconds, _LEAST_S) / _LEAST_S) / np.log(_STEP)
        self._counts[min(_BINS - 1, round(float(place)))] += 1
        self.n += 1
        self.largest_s = max(self.largest_s, seconds)

    def at(self, share: float) -> float | None:
        """Return the time in s that this share of them, 0..1, does not exceed; None without any."""
        if self.n == 0:
            return None
        place = int(np.searchsorted(np.cumsum(self._counts), max(1.0, share * self.n)))
        return min(self.largest_s, float(_LEAST_S * _STEP**place))

    def to_json(self) -> dict[str, Any]:
        """Return n, p50, p90, p99 and the largest, in ms."""
        named = {"p50": self.at(0.5), "p90": self.at(0.9), "p99": self.at(0.99)}
        values = {name: None if value is None else round(1000 * value, 2) for name, value in named.items()}
        return {"n": self.n, **values, "max": round(1000 * self.largest_s, 2)}


class Rate:
    """Follows a total over time: its rate over all, and over the last 60 values."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque(maxlen=60)
        self._first: tuple[float, int] | None = None

    def note(self, at_s: float, total: int) -> None:
        """Note the total at a time in s."""
        self._recent.append((at_s, total))
        self._first = self._first or (at_s, total)

    @property
    def recent(self) -> float:
        """Units per s, lately."""
        return self._since(self._recent[0]) if self._recent else 0.0

    @property
    def overall(self) -> float:
        """Units per s, from the first value to the last."""
        return self._since(self._first) if self._first else 0.0

    def _since(self, first: tuple[float, int]) -> float:
        seconds = self._recent[-1][0] - first[0]
        return (self._recent[-1][1] - first[1]) / seconds if seconds > 0 else 0.0


@dataclass(kw_only=True)
class KeyCounts:
    """What became of the jobs of the key lane."""

    answered: int = 0
    cancelled: int = 0
    failed: int = 0
    refined: int = 0
    refinements_failed: int = 0


@dataclass(kw_only=True)
class TrackCounts:
    """What the track lane has measured so far."""

    source: str = ""
    """Name of the source of the last frame, without credentials."""
    results: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Cause -> frames that were read and have no result."""
    key_delay: Quantiles = field(default_factory=Quantiles)
    """From the capture of a key frame until its answer was ready."""
    delay: Quantiles = field(default_factory=Quantiles)
    """From the capture of a frame until its result was ready."""
    age: Quantiles = field(default_factory=Quantiles)
    """Of every mask that was shown."""
    captured: Rate = field(default_factory=Rate)
    out: Rate = field(default_factory=Rate)
    states: dict[str, int] = field(default_factory=dict)
    """State -> number of results of a phrase in it."""

    def note(self, frame: Frame, found: Sequence[TargetResult], delay_s: float, now_s: float) -> None:
        """Count one frame's result."""
        self.source = frame.source
        self.results += 1
        self.delay.add(delay_s)
        self.out.note(now_s, self.results)
        self.captured.note(frame.captured_s, frame.number)
        for each in found:
            self.states[each.state] = self.states.get(each.state, 0) + 1
            if each.age_s is not None:
                self.age.add(each.age_s)


@dataclass(frozen=True, kw_only=True)
class CameraSummary:
    """A finished run, or one so far."""

    source: str
    backend: str
    backend_reason: str
    seconds: float
    frames_captured: int
    """Frames that the source produced."""
    results: int
    """Results that the consumer has taken."""
    key_frames: int
    fps: Mapping[str, float]
    """`in`, `key` and `out`, per s."""
    delays_ms: Mapping[str, Mapping[str, Any]]
    """`capture_to_key`, `capture_to_out` and `mask_age`: n, p50, p90, p99, max."""
    states: Mapping[str, int]
    """State -> results of a phrase in it."""
    dropped: Mapping[str, int]
    """Cause -> frames."""
    key: Mapping[str, int]
    """What became of key frames and refinements."""
    reconnects: int = 0
    files: Mapping[str, Any] = field(default_factory=dict)
    """What was recorded: name -> frames written and left out, and the error that ended it."""
    throttling: tuple[str, ...] = ()
    """Why the machine was slower than at the start; empty where it was not, or does not say."""
    error: str | None = None
    """Reason why the run ended early."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "source": self.source,
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "seconds": round(self.seconds, 2),
            "frames_captured": self.frames_captured,
            "results": self.results,
            "key_frames": self.key_frames,
            "fps": {name: round(value, 2) for name, value in self.fps.items()},
            "delays_ms": {name: dict(value) for name, value in self.delays_ms.items()},
            "states": dict(self.states),
            "dropped": dict(self.dropped),
            "key": dict(self.key),
            "reconnects": self.reconnects,
            "files": dict(self.files),
            "throttling": list(self.throttling),
            "error": self.error,
        }


def summarize(
    tracked: TrackCounts,
    key: KeyCounts,
    source: SourceCounts,
    *,
    seconds: float,
    taken: int,
    unread: int,
    backend: tuple[str, str],
) -> CameraSummary:
    """Put the counts of the lanes together.

    Args:
        tracked: of the track lane.
        key: of the key lane.
        source: of the source.
        seconds: of the run.
        taken: results that the consumer has taken.
        unread: results that the consumer was too slow for.
        backend: name of the back-end, and the reason for it.
    """
    lost = {"consumer": unread, "closed": tracked.results - taken - unread}
    return CameraSummary(
        source=tracked.source or "no frame came",
        backend=backend[0],
        backend_reason=backend[1],
        seconds=seconds,
        frames_captured=source.captured,
        results=taken,
        key_frames=key.answered,
        fps={
            "in": tracked.captured.overall,
            "key": key.answered / seconds if seconds > 0 else 0.0,
            "out": tracked.out.overall,
        },
        delays_ms={
            "capture_to_key": tracked.key_delay.to_json(),
            "capture_to_out": tracked.delay.to_json(),
            "mask_age": tracked.age.to_json(),
        },
        states=dict(tracked.states),
        dropped=dict(Counter(source.dropped) + Counter(tracked.dropped) + Counter(lost)),
        key=asdict(key),
        reconnects=source.reconnects,
    )


_NAMES = {"capture_to_key": "capture to key", "capture_to_out": "capture to result", "mask_age": "mask age"}


def summary_section(summary: CameraSummary) -> Section:
    """Lay out a summary for a reader."""
    rows: list[tuple[Cell | str, ...]] = [
        (_NAMES[name], *(_ms(values[each]) for each in ("p50", "p90", "p99", "max")), str(values["n"]))
        for name, values in summary.delays_ms.items()
    ]
    delays = Table(columns=(Column("ms"), *numeric("p50", "p90", "p99", "max", "n")), rows=rows)
    rates = ", ".join(f"{name} {value:.1f}" for name, value in summary.fps.items())
    facts = [
        ("frames/s", rates),
        (
            "results",
            f"{summary.results} of {summary.frames_captured} frames, {summary.key_frames} key frames",
        ),
        ("states", _counted(summary.states) or "none"),
        ("dropped", _counted(summary.dropped) or "none"),
    ]
    odd = {name: n for name, n in summary.key.items() if n and name != "answered"}
    facts += [("key lane", _counted(odd))] if odd else []
    facts += [("reconnects", str(summary.reconnects))] if summary.reconnects else []
    facts += [(name, _written(values)) for name, values in summary.files.items()]
    facts += [("throttled", each) for each in summary.throttling]
    lines = (f"{summary.source}   {summary.seconds:.1f} s on {summary.backend}",)
    return Section(lines=lines, tables=(delays, facts_table(facts)))


def _ms(value: float | None) -> Cell:
    return Cell("–" if value is None else f"{value:.1f}")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _written(values: Mapping[str, Any]) -> str:
    lost = f", {values['dropped']} left out" if values["dropped"] else ""
    return values["error"] or f"{values['written']} frames{lost}"
