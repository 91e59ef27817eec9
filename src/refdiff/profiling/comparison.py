"""Is one profile slower than another, beyond the noise that both measured themselves?

The rule. A round asks every question once; of each row (all of it, a stage, a part of a stage) a round
gives one figure, the mean over its questions, and the row's figure is the median over the rounds. Its noise
is the standard error of that median by a bootstrap that draws blocks of neighbouring rounds, about the
square root of their number long, so that what drifts within a record widens it. A row changed when the two
medians are further apart than `Z` times the two errors together (root of the sum of squares) plus what the
machine itself changed: before each round it was timed on the same matrix product, and the share by which
the two records' middle products differ is allowed to every row. Rounds in which the machine throttled are
left out. A row that only one record has is told of and not judged: the stage it is in is.

In: two JSON documents of `refdiff profile --json`. Out: a `Comparison`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from refdiff.errors import GateError, InputError
from refdiff.profiling.samples import Part

Z = 4.0
"""Of normal errors, one row in thirty thousand is that far off by chance; two dozen rows are looked at."""

_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row of both."""

    row: str
    """`ALL`, a stage, or stage/part."""
    before_ms: float
    after_ms: float
    noise_ms: float
    """Differences up to this mean nothing."""
    verdict: Literal["slower", "faster", "same", "new", "gone"]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "row": self.row,
            "before_ms": round(self.before_ms, 4),
            "after_ms": round(self.after_ms, 4),
            "noise_ms": round(self.noise_ms, 4),
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        change = f"{self.after_ms / self.before_ms - 1:+.1%}, " if self.before_ms else ""
        return (
            f"{self.row} {self.before_ms:.3g} ms -> {self.after_ms:.3g} ms "
            f"({change}noise ±{self.noise_ms:.2g} ms)"
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every row of both records."""

    before: str
    after: str
    changes: tuple[Change, ...]
    unrest: float
    """The share by which the machine itself differed; 0 where no record says."""
    differences: tuple[str, ...]
    """What the two are not alike in, where that was allowed."""
    left_out: tuple[int, int]
    """Throttled rounds of each."""

    @property
    def slower(self) -> tuple[Change, ...]:
        """What regressed."""
        return tuple(change for change in self.changes if change.verdict == "slower")

    def require(self) -> None:
        """Refuse a regression.

        Raises:
            GateError: names the rows.
        """
        if self.slower:
            raise GateError(f"slower beyond the noise: {'; '.join(str(change) for change in self.slower)}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "before": self.before,
            "after": self.after,
            "passed": not self.slower,
            "z": Z,
            "machine_differs_by": round(self.unrest, 4),
            "differences": list(self.differences),
            "throttled_rounds_left_out": list(self.left_out),
            "changes": [change.to_json() for change in self.changes],
        }


def compare(before: Profile, after: Profile, *, allow_different: bool = False) -> Comparison:
    """Lay two profiles side by side.

    Args:
        before: the yardstick.
        after: what must not be slower.
        allow_different: compare profiles of different machines, bundles or options.

    Raises:
        InputError: they differ in one of these, and that was not allowed.
    """
    differences = tuple(_differences(before.identity, after.identity))
    if differences and not allow_different:
        raise InputError(
            f"{before.name} and {after.name} are not of the same thing: {'; '.join(differences)}; "
            "profile both alike, or compare them all the same (--allow-different)"
        )
    unrest = _unrest(before.yardstick, after.yardstick)
    rows = sorted({*before.figures, *after.figures}, key=_order)
    return Comparison(
        before=before.name,
        after=after.name,
        changes=tuple(_change(row, before.figures.get(row), after.figures.get(row), unrest) for row in rows),
        unrest=unrest,
        differences=differences,
        left_out=(before.left_out, after.left_out),
    )


def noise_of(values: Sequence[float]) -> float:
    """The standard error of the values' median, by a bootstrap of blocks; the same values give the same."""
    figures, rng = np.asarray(values, np.float64), np.random.default_rng(0)
    count = len(figures)
    length = max(1, round(math.sqrt(count)))
    starts = rng.integers(0, count, (_DRAWS, -(-count // length)))
    drawn = (
        starts[:, :, None] + np.arange(length)
    ) % count  # blocks go round, so that all rounds count alike
    medians = np.median(figures[drawn.reshape(_DRAWS, -1)[:, :count]], axis=1)
    return float(np.std(medians))


def _unrest(before: float | None, after: float | None) -> float:
    if not before or not after:
        return 0.0
    return max(before, after) / min(before, after) - 1


def _change(row: str, before: Sequence[float] | None, after: Sequence[float] | None, unrest: float) -> Change:
    if before is None:
        return _lone(row, after or [0.0], "new")
    if after is None:
        return _lone(row, before, "gone")
    first, second = float(np.median(before)), float(np.median(after))
    noise = Z * math.hypot(noise_of(before), noise_of(after)) + unrest * max(first, second)
    moved = second - first
    verdict: Literal["slower", "faster", "same"] = "same"
    if abs(moved) > noise:
        verdict = "slower" if moved > 0 else "faster"
    return Change(row=row, before_ms=first, after_ms=second, noise_ms=noise, verdict=verdict)


def _lone(row: str, values: Sequence[float], verdict: Literal["new", "gone"]) -> Change:
    """A row that only one record has."""
    middle = float(np.median(values))
    before, after = (0.0, middle) if verdict == "new" else (middle, 0.0)
    return Change(row=row, before_ms=before, after_ms=after, noise_ms=noise_of(values), verdict=verdict)


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    """The paths at which two documents differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in dict.fromkeys((*before, *after)):
            found += _differences(before.get(key), after.get(key), f"{where} {key}".strip())
        return found
    return [] if before == after else [f"{where} ({_short(before)} and {_short(after)})"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _order(row: str) -> tuple[bool, tuple[int, int], str]:
    part = Part.parse(row)
    return (row != ALL, (part.order[0], part.order[1] if part.what else -1), row)


KIND, FORMAT = "refdiff profile", 1


LEAST_ROUNDS = 5
"""Fewer say nothing of their noise."""


ALL = "all"
"""The row of all of it."""


Figures = Mapping[str, Sequence[float]]
"""Row -> milliseconds of each round, in their order."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a comparison reads of a record."""

    name: str
    identity: Mapping[str, Any]
    """What has to be the same for two profiles to be of the same thing."""
    figures: Figures
    yardstick: float | None
    """GFLOP/s of a matrix product, the median over the rounds; None: unknown."""
    left_out: int
    """Rounds in which the machine throttled."""


def read_profile(document: Any, name: str) -> Profile:
    """What is compared of a record.

    Args:
        document: parsed JSON.
        name: of its file, for messages.

    Raises:
        InputError: it is no profile, of another format, or of too few rounds.
    """
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise InputError(f"{name} is no profile; expected what `refdiff profile BUNDLE --json` prints")
    if document.get("format") != FORMAT:
        raise InputError(
            f"{name} is a profile of format {document.get('format')!r}, expected {FORMAT}; profile again"
        )
    try:
        identity = {key: document[key] for key in ("machine", "bundle", "options")}
        rounds: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for sample in document["samples"]:
            rounds[int(sample["round"])].append(sample)
        kept = [rounds[at] for at in sorted(rounds) if not any(each["throttled"] for each in rounds[at])]
        figures = _figures([[dict(each["parts"]) for each in one] for one in kept])
        speeds = [float(speed) for speed in document["peak"]["rounds"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{name} is a damaged profile ({type(error).__name__}: {error}); profile again"
        ) from error
    if len(kept) < LEAST_ROUNDS:
        throttled = (
            f", {len(rounds) - len(kept)} of {len(rounds)} were throttled" if len(kept) < len(rounds) else ""
        )
        raise InputError(
            f"{name} has {len(kept)} rounds to compare{throttled}, expected {LEAST_ROUNDS} or more; "
            "profile again with more --runs"
        )
    return Profile(
        name=name,
        identity=identity,
        figures=figures,
        yardstick=float(np.median(speeds)) if speeds else None,
        left_out=len(rounds) - len(kept),
    )


def _figures(rounds: Sequence[Sequence[Mapping[str, float]]]) -> Figures:
    """Of all of it, of each stage of several parts, and of each part."""
    figures: dict[str, list[float]] = {}
    parts = {text for one in rounds for each in one for text in each}
    stages: dict[str, set[str]] = defaultdict(set)
    for text in parts:
        stages[Part.parse(text).stage].add(text)
    rows = {ALL: parts, **{s: p for s, p in stages.items() if len(p) > 1}, **{text: {text} for text in parts}}
    for row, summed in rows.items():
        figures[row] = [
            sum(float(each.get(text, 0.0)) for each in one for text in summed) / len(one) for one in rounds
        ]
    return figures
