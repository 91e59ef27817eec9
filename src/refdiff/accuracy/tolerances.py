"""The committed limits in `gates.json`, and verdicts on measured values.

The table is keyed by precision. A limit changes only together with the measurement that supports it:
`measured` is the miniature's value on its golden feeds, with half-precision results rounded at every node.
The one correlation with a measurement is the worst of 16 recorded feeds, so that correct runs do not fail.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

from refdiff.errors import InputError

Section = Literal["graph_error", "graph_correlation", "answer", "agreement"]
Bound = Literal["at_least", "at_most"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A measured value and its limit."""

    name: str
    value: float
    bound: Bound
    limit: float

    @property
    def passed(self) -> bool:
        """True if the value is within the limit; NaN never is."""
        return self.value >= self.limit if self.bound == "at_least" else self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3g}, expected {self.bound.replace('_', ' ')} {self.limit:g}"

    def named(self, name: str) -> Verdict:
        """Return the same verdict under another name."""
        return replace(self, name=name)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; JSON has no infinity, so a value that is not finite is null."""
        value = self.value if math.isfinite(self.value) else None
        return {"name": self.name, "value": value, self.bound: self.limit, "passed": self.passed}


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
