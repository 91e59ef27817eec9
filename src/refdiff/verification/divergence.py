"""Inside a graph that failed: how far each tensor is from what it should be, and at which node it diverges.

In: a node's result in the failing graph, and the same tensor in a more exact one. Out: `TensorDifference`s,
and the `Divergence` they lead to. A node may be as far off as its graph, but as a root mean square: the
largest difference says little inside a graph, where eight bits clip a few values on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from refdiff.accuracy.tolerances import GraphTolerance
from refdiff.contracts.parity import correlation
from refdiff.contracts.session import Array

LARGEST_FP16 = 65504.0

Cause = Literal["not finite", "outside its tolerance", "largest growth"]


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """The error of one tensor of the failing graph."""

    error: float
    """Root mean square of the difference over that of the expected values; infinite for a new NaN or Inf."""
    correlation: float | None
    """None where nothing is expected."""
    value: float
    """The value where the difference is largest, or the first new NaN or Inf."""
    expected: float | None
    """The same element of the more exact graph; None where there is no such tensor."""
    largest: float
    """Largest finite magnitude."""
    largest_expected: float | None
    """Largest finite magnitude in the more exact graph."""
    nan: int
    inf: int
    size: int

    @property
    def is_finite(self) -> bool:
        """No value became NaN or infinite here."""
        return math.isfinite(self.error)

    def exceeds(self, tolerance: GraphTolerance) -> bool:
        """Return whether the tensor is too far from what it should be."""
        related = self.correlation is None or self.correlation >= tolerance.correlation
        return not (self.error <= tolerance.error and related)


@dataclass(frozen=True, kw_only=True)
class NodeResult:
    """The outputs that one node computed from its inputs."""

    node: str
    operator: str
    tensor: str
    type: str
    """Type of the tensor as ONNX calls it, for instance FLOAT16."""
    difference: TensorDifference
    input_error: float
    """The largest error among the tensors it read; 0 where they are exact."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first node of a graph whose result is outside the graph's tolerance."""

    precision: str
    """Precision of the bundle."""
    graph: str
    compared_with: str | None
    """Precision of the bundle that says what the tensors should be; None: only NaN and Inf could be found."""
    cause: Cause
    result: NodeResult
    tolerance: GraphTolerance

    def __str__(self) -> str:
        return "; ".join((f"{self.precision} {self.graph}: node {self._cause()}", *self._evidence()))

    def _cause(self) -> str:
        name = f"{self.result.node} ({self.result.operator})"
        difference, limit = self.result.difference, self.tolerance
        if self.cause == "not finite":
            return f"{name} is the first whose result is not finite"
        off = f"off by {_number(difference.error)} of its size, allowed {limit.error:g}"
        if self.cause == "largest growth":
            return f"{name} is where the error grows most, though none is outside its tolerance: {off}"
        if difference.error <= limit.error:
            off = f"correlates {difference.correlation:.5f}, expected {limit.correlation:g} or more"
        return f"{name} is the first outside its tolerance: {off}"

    def _evidence(self) -> list[str]:
        difference = self.result.difference
        parts = [f"it holds {_number(difference.value)}{_with_expected(difference.expected)}"]
        if difference.largest_expected is not None and (difference.is_finite or self._beyond_fp16()):
            parts.append(
                f"magnitudes reach {_number(difference.largest)}{_with_expected(difference.largest_expected)}"
            )
        if difference.nan or difference.inf:
            parts.append(f"{difference.nan} NaN and {difference.inf} Inf of {difference.size} values")
        if self._beyond_fp16():
            parts.append(f"fp16 ends at {LARGEST_FP16:.0f}")
        return parts

    def _beyond_fp16(self) -> bool:
        difference = self.result.difference
        if self.result.type != "FLOAT16":
            return False
        expected = difference.largest_expected
        return difference.inf > 0 if expected is None else expected > LARGEST_FP16

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; JSON has no infinity, so a value without a number is text."""
        difference, node = self.result.difference, self.result
        return {
            "precision": self.precision,
            "graph": self.graph,
            "node": node.node,
            "operator": node.operator,
            "tensor": node.tensor,
            "type": node.type,
            "cause": self.cause,
            "compared_with": self.compared_with,
            "error": _json(difference.error),
            "error_at_most": self.tolerance.error,
            "error_of_inputs": _json(node.input_error),
            "correlation": difference.correlation,
            "correlation_at_least": self.tolerance.correlation,
            "value": _json(difference.value),
            "expected": None if difference.expected is None else _json(difference.expected),
            "largest_magnitude": difference.largest,
            "largest_magnitude_expected": difference.largest_expected,
            "nan": difference.nan,
            "inf": difference.inf,
            "size": difference.size,
        }


def difference_of(got: Array, expected: Array | None, tolerance: GraphTolerance) -> TensorDifference:
    """Compare one tensor, floats of any shape.

    Args:
        got: its values in the failing graph.
        expected: its values in the more exact graph; with None, or another shape, only NaN and Inf are found.
        tolerance: a tensor that varies by less than this counts as perfectly correlated.
    """
    flat = got.astype(np.float64).ravel()
    should = None if expected is None or expected.shape != got.shape else expected.astype(np.float64).ravel()
    distance = _distance(flat, should)
    at = int(distance.argmax()) if flat.size else None
    scale = _size(flat if should is None else should) or 1.0
    error = math.inf if np.isinf(distance).any() else _size(distance) / scale
    return TensorDifference(
        error=error,
        correlation=None if should is None else _correlation(flat, should, error, tolerance),
        value=0.0 if at is None else float(flat[at]),
        expected=None if at is None or should is None else float(should[at]),
        largest=_largest(flat),
        largest_expected=None if should is None else _largest(should),
        nan=int(np.isnan(flat).sum()),
        inf=int(np.isinf(flat).sum()),
        size=flat.size,
    )


def first_outside_tolerance(
    results: Iterable[NodeResult], tolerance: GraphTolerance
) -> tuple[Cause, NodeResult] | None:
    """Return why and at which node a graph diverges.

    Args:
        results: in the graph's order; taken until one is outside the tolerance.
        tolerance: the graph's.

    Returns:
        The first result outside the tolerance; if none is, the one whose error grew most over that of its
        inputs. None where nothing differs at all.
    """
    seen: list[NodeResult] = []
    for result in results:
        if result.difference.exceeds(tolerance):
            return "outside its tolerance" if result.difference.is_finite else "not finite", result
        seen.append(result)
    return _largest_growth(seen)


def _largest_growth(results: Sequence[NodeResult]) -> tuple[Cause, NodeResult] | None:
    grown = [(each.difference.error - each.input_error, each) for each in results]
    growth, result = max(grown, key=lambda pair: pair[0], default=(0.0, None))
    return None if result is None or growth <= 0 else ("largest growth", result)


def _distance(got: Array, expected: Array | None) -> Array:
    """Return how far each value is off, [k]; infinite where a new NaN or Inf is."""
    if expected is None:
        return np.where(np.isfinite(got), 0.0, np.inf)
    both = np.isfinite(got) & np.isfinite(expected)
    distance = np.full(got.shape, np.inf)
    distance[both] = np.abs(got[both] - expected[both])
    # A mask's -inf that is in both graphs is no difference, nor is a NaN that was there before.
    distance[~both & ((got == expected) | (np.isnan(got) & np.isnan(expected)))] = 0.0
    return distance


def _correlation(got: Array, expected: Array, error: float, tolerance: GraphTolerance) -> float:
    if not math.isfinite(error):
        return 0.0
    finite = np.isfinite(got) & np.isfinite(expected)
    got, expected = got[finite], expected[finite]
    varies = bool(expected.size) and float(np.std(expected)) > tolerance.error * _size(expected)
    return correlation(got, expected) if varies else 1.0


def _size(values: Array) -> float:
    """Return the root mean square of the finite values."""
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0


def _largest(values: Array) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0


def _with_expected(expected: float | None) -> str:
    return "" if expected is None else f" where {_number(expected)} is expected"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
