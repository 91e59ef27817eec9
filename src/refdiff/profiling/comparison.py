"""Compare two profiles: is one slower, beyond the noise that both measured themselves?

The rule. A round runs every sample once; of each row (the total, a stage, a part of a stage) a round gives
one figure, the mean over its samples, and the row's figure is the median over the rounds. Its noise is the
standard error of that median by a bootstrap that draws blocks of neighbouring rounds, about the square root
of their number long, so that drift within a record widens it. A row changed when the two medians differ by
more than `Z` times the two errors together (root of the sum of squares) plus what the machine itself changed:
before each round it was timed on the same matrix product, and the share by which the two records' median
products differ is allowed to every row. Rounds in which the machine throttled are excluded. A row that only
one record has is reported and not judged: its stage is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refdiff.errors import GateError, InputError
from refdiff.profiling.records import ALL, ProfileRecord, load_record
from refdiff.profiling.spans import Part

Z = 4.0
"""Bound that one row in 30,000 exceeds by chance if errors are normal; some two dozen are compared."""

_DRAWS = 2000

Verdict = Literal["slower", "faster", "same", "new", "gone"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row of both records."""

    row: str
    """`ALL`, a stage, or stage/part."""
    before_ms: float
    after_ms: float
    noise_ms: float
    """Differences up to this are not significant."""
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
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
    machine_change: float
    """Share by which the machine itself differed; 0 if a record does not say."""
    differences: tuple[str, ...]
    """In what the two differ, if that was allowed."""
    left_out: tuple[int, int]
    """Throttled rounds of each."""

    @property
    def slower(self) -> tuple[Change, ...]:
        """The rows that regressed."""
        return tuple(change for change in self.changes if change.verdict == "slower")

    def require(self) -> None:
        """Refuse a regression.

        Raises:
            GateError: names the rows.
        """
        if self.slower:
            raise GateError(f"slower beyond the noise: {'; '.join(str(change) for change in self.slower)}")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "before": self.before,
            "after": self.after,
            "passed": not self.slower,
            "z": Z,
            "machine_differs_by": round(self.machine_change, 4),
            "differences": list(self.differences),
            "throttled_rounds_left_out": list(self.left_out),
            "changes": [change.to_json() for change in self.changes],
        }


def compare_profiles(before: Path | str, after: Path | str, *, allow_different: bool = False) -> Comparison:
    """Compare two files that `refdiff profile --json` printed.

    Args:
        before: the reference.
        after: the record that must not be slower.
        allow_different: compare records of different machines, bundles or options.

    Raises:
        InputError: a file is not such a record, or the two are not comparable.
    """
    return compare(load_record(Path(before)), load_record(Path(after)), allow_different=allow_different)


def compare(before: ProfileRecord, after: ProfileRecord, *, allow_different: bool = False) -> Comparison:
    """Compare two records row by row; see `compare_profiles`."""
    differences = tuple(_differences(before.identity, after.identity))
    if differences and not allow_different:
        raise InputError(
            f"{before.name} and {after.name} are not of the same thing: {'; '.join(differences)}; "
            "profile both alike, or compare them all the same (--allow-different)"
        )
    machine_change = 0.0
    if before.peak and after.peak:
        machine_change = max(before.peak, after.peak) / min(before.peak, after.peak) - 1
    rows = sorted({*before.rows, *after.rows}, key=_order)
    return Comparison(
        before=before.name,
        after=after.name,
        changes=tuple(
            _change(row, before.rows.get(row), after.rows.get(row), machine_change) for row in rows
        ),
        machine_change=machine_change,
        differences=differences,
        left_out=(before.left_out, after.left_out),
    )


def noise_of(values: Sequence[float]) -> float:
    """Return the standard error of the values' median, by a bootstrap of blocks; it is deterministic."""
    figures, rng = np.asarray(values, np.float64), np.random.default_rng(0)
    count = len(figures)
    length = max(1, round(math.sqrt(count)))
    starts = rng.integers(0, count, (_DRAWS, -(-count // length)))
    drawn = (starts[:, :, None] + np.arange(length)) % count  # blocks wrap around: all rounds count alike
    medians = np.median(figures[drawn.reshape(_DRAWS, -1)[:, :count]], axis=1)
    return float(np.std(medians))


def _change(
    row: str, before: Sequence[float] | None, after: Sequence[float] | None, machine_change: float
) -> Change:
    first = 0.0 if before is None else float(np.median(before))
    second = 0.0 if after is None else float(np.median(after))
    verdict: Verdict
    if before is None or after is None:
        verdict, noise = ("new" if before is None else "gone"), noise_of(after or before or [0.0])
    else:
        noise = Z * math.hypot(noise_of(before), noise_of(after)) + machine_change * max(first, second)
        moved = second - first
        verdict = ("slower" if moved > 0 else "faster") if abs(moved) > noise else "same"
    return Change(row=row, before_ms=first, after_ms=second, noise_ms=noise, verdict=verdict)


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Return the paths at which two documents differ, with both values."""
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
    return (row != ALL, (part.order[0], part.order[1] if part.name else -1), row)
