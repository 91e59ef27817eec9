"""Distance of a graph's output from the expected one: the measures that export and check share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refdiff.contracts.session import Array


@dataclass(frozen=True)
class Parity:
    """Distance of one output of a graph from the expected output."""

    error: float
    """Largest difference over the range of the expected output; see `relative_error`."""
    correlation: float
    """Pearson's correlation, -1..1; see `correlation`."""

    def worse(self, other: Parity) -> Parity:
        """Return the worse value of each measure."""
        return Parity(max(self.error, other.error), min(self.correlation, other.correlation))


def measure_parity(got: Array, expected: Array) -> Parity:
    """Measure both.

    Args:
        got: any shape.
        expected: the same shape.
    """
    return Parity(relative_error(got, expected), correlation(got, expected))


def subsample(output: Array, most_bytes: int) -> Array:
    """Return the output, or every n-th of its values as one row.

    n is about as small as `most_bytes` allows. Where possible it has no factor in common with the length of
    the last axis, so that every column is sampled.
    """
    if output.nbytes <= most_bytes:
        return output
    least = -(-output.nbytes // most_bytes)
    possible = (n for n in range(least, 2 * least) if _step_of(output.size, -(-output.size // n)) == n)
    step = next((n for n in possible if math.gcd(n, output.shape[-1]) == 1), least)
    return output.reshape(-1)[::step]


def select_recorded(output: Array, record: Array) -> Array:
    """Return the part of an output that its golden record holds: all of it, or what `subsample` kept."""
    if record.shape == output.shape or not record.size:
        return output
    return output.reshape(-1)[:: _step_of(output.size, record.size)]


def _step_of(size: int, kept: int) -> int:
    """Return the step that keeps `kept` of `size` values."""
    return -(-size // kept)


def relative_error(got: Array, expected: Array) -> float:
    """Return the largest difference over the range of `expected`; infinite for another shape, inf or NaN."""
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return float("inf")
    if not expected.size:
        return 0.0
    difference = float(np.abs(got.astype(np.float64) - expected).max())
    # A constant output has no range; its magnitude stands for it.
    return difference / (float(np.ptp(expected)) or float(np.abs(expected).max()) or 1.0)


def correlation(got: Array, expected: Array) -> float:
    """Return Pearson's correlation, -1..1.

    1 if both arrays are constant; 0 if one is, if one holds inf or NaN, or if the shapes differ.
    """
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return 0.0
    first, second = (each.astype(np.float64).ravel() for each in (got, expected))
    first, second = first - first.mean(), second - second.mean()
    lengths = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    return float(first @ second) / (lengths[0] * lengths[1])
