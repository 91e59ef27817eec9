"""The committed limits in `gates.json`, and verdicts on measured values.

The table is keyed by precision. A limit changes only together with the measurement that supports it:
`measured` is the miniature's value on its golden feeds, with half-precision results rounded at every node.
The one correlation with a measurement is the worst of 16 recorded feeds, so that correct runs do not fail.

Limits of `graph_error` and `graph_correlation` apply to the value itself. Limits of `agreement` apply to
means over samples: a mean that misses its limit fails only if its whole 95 % interval misses the limit too.
Otherwise the samples are too few to judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

import numpy as np

from refdiff.accuracy.metrics import Interval, bounded_mean_interval
from refdiff.errors import InputError

Section = Literal["graph_error", "graph_correlation", "answer", "agreement"]
Bound = Literal["at_least", "at_most"]
Outcome = Literal["passed", "undecided", "failed"]

MOST_SAMPLES = 10_000
"""Largest number of samples that is proposed."""

_LOWEST = {"heat_correlation": -1.0}
"""Smallest possible values that are not 0."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The samples behind a mean."""

    values: tuple[float, ...]
    interval: Interval
    """95 %, of the mean over all possible samples."""
    needed: int | None
    """Samples that decide if more of them are like these; None if these do, or if `MOST_SAMPLES` do not."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "samples": len(self.values),
            "interval_95": list(self.interval),
            "samples_needed": self.needed,
            "values": list(self.values),
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A measured value and its limit."""

    name: str
    value: float
    bound: Bound
    limit: float
    sampling: Sampling | None = None
    """The samples, if the value is a mean over some; None where the value is exact."""

    @property
    def outcome(self) -> Outcome:
        """The judgement; NaN always fails."""
        if self._within(self.value):
            return "passed"
        if self.sampling is None:
            return "failed"
        low, high = self.sampling.interval
        return "undecided" if self._within(high if self.bound == "at_least" else low) else "failed"

    @property
    def passed(self) -> bool:
        """True if the value is within the limit."""
        return self.outcome == "passed"

    def _within(self, value: float) -> bool:
        return value >= self.limit if self.bound == "at_least" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3g}, expected {self.bound.replace('_', ' ')} {self.limit:g}"

    def named(self, name: str) -> Verdict:
        """Return the same verdict under another name."""
        return replace(self, name=name)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; JSON has no infinity, so a value that is not finite is null."""
        value = self.value if math.isfinite(self.value) else None
        return {
            "name": self.name,
            "value": value,
            self.bound: self.limit,
            "passed": self.passed,
            "verdict": self.outcome,
            **({} if self.sampling is None else self.sampling.to_json()),
        }


def judge(section: Section, precision: str, values: Mapping[str, float]) -> tuple[Verdict, ...]:
    """Compare each value with its limit, in the order of `values`.

    Raises:
        InputError: the table has no limit for this precision, or for one of the names.
    """
    limits = _limits(section, precision)
    unknown = [name for name in values if name not in limits]
    if unknown:
        raise InputError(
            f"no gate for {section} of {unknown[0]!r} at precision {precision}; known: {', '.join(limits)}"
        )
    return tuple(_verdict(name, value, limits[name]) for name, value in values.items())


def judge_samples(precision: str, samples: Mapping[str, Sequence[float]]) -> tuple[Verdict, ...]:
    """Compare the mean of each part of `agreement` with its limit, as far as the samples allow.

    Args:
        precision: key of the table.
        samples: part -> its value on every sample that has it, at least one.

    Raises:
        InputError: as `judge`.
    """
    means = {name: float(np.mean(values)) for name, values in samples.items()}
    return tuple(
        replace(verdict, sampling=_sampling(verdict, samples[verdict.name]))
        for verdict in judge("agreement", precision, means)
    )


def _sampling(verdict: Verdict, values: Sequence[float]) -> Sampling:
    """Return the interval of the mean and, where that leaves the verdict open, the samples needed."""
    lowest = _LOWEST.get(verdict.name, 0.0)
    sampling = Sampling(
        values=tuple(values), interval=bounded_mean_interval(values, lowest=lowest), needed=None
    )
    if replace(verdict, sampling=sampling).outcome != "undecided":
        return sampling

    def reaches(count: int) -> bool:
        return bounded_mean_interval(values, lowest=lowest, count=count)[1] >= verdict.limit

    few, enough = len(values), 2 * len(values)
    while reaches(enough):
        if enough >= MOST_SAMPLES:
            return sampling
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (middle, enough) if reaches(middle) else (few, middle)
    return replace(sampling, needed=enough)


@dataclass(frozen=True, kw_only=True)
class GraphTolerance:
    """The allowed distance of a graph from torch."""

    error: float
    """Largest allowed difference, over the range of torch's output."""
    correlation: float
    """Smallest allowed correlation with it."""


def graph_tolerance(precision: str, graph: str) -> GraphTolerance:
    """Return the committed limits of a graph.

    Raises:
        InputError: the table has none for this precision or graph.
    """
    (error,) = judge("graph_error", precision, {graph: 0.0})
    (correlation,) = judge("graph_correlation", precision, {graph: 1.0})
    return GraphTolerance(error=error.limit, correlation=correlation.limit)


def precisions() -> tuple[str, ...]:
    """Return the precisions of the table, the most exact first."""
    return tuple(_table())


def exactness(precision: str) -> int:
    """Return the rank of a precision, 0 for the most exact.

    Raises:
        InputError: the table does not know it.
    """
    _limits("agreement", precision)
    return precisions().index(precision)


def _table() -> dict[str, Any]:
    text = resources.files("refdiff.accuracy").joinpath("gates.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _limits(section: Section, precision: str) -> dict[str, dict[str, float]]:
    table = _table()
    if precision not in table:
        raise InputError(
            f"no gates for precision {precision!r}, only for: {', '.join(table)}; upgrade refdiff to check it"
        )
    limits: dict[str, dict[str, float]] = table[precision][section]
    return limits


def _verdict(name: str, value: float, entry: Mapping[str, float]) -> Verdict:
    bound: Bound = "at_least" if "at_least" in entry else "at_most"
    return Verdict(name=name, value=value, bound=bound, limit=entry[bound])
