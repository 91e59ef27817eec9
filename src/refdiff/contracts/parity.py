"""How far a graph's output is from what it should be: the one measure that export and check share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refdiff.contracts.session import Array


@dataclass(frozen=True)
class Parity:
    """How close one output of a graph came to torch's when it was exported."""

    error: float
    """See `relative_error`."""
    correlation: float
    """See `correlation`."""

    def worse(self, other: Parity) -> Parity:
        """The worse of each measure."""
        return Parity(max(self.error, other.error), min(self.correlation, other.correlation))


def parity(got: Array, expected: Array) -> Parity:
    """Both measures."""
    return Parity(relative_error(got, expected), correlation(got, expected))


def thinned(output: Array, most_bytes: int) -> Array:
    """The output, or every n-th of its values as one row.

    n is about as small as `most_bytes` allows. Where it can be, it has no factor in common with the last
    axis, so that every column is seen.
    """
    if output.nbytes <= most_bytes:
        return output
    least = -(-output.nbytes // most_bytes)
    told = (n for n in range(least, 2 * least) if _step_of(output.size, -(-output.size // n)) == n)
    step = next((n for n in told if math.gcd(n, output.shape[-1]) == 1), least)
    return output.reshape(-1)[::step]


def recorded_part(output: Array, record: Array) -> Array:
    """What of an output a golden record holds: all of it, or what `thinned` left, as one row."""
    if record.shape == output.shape or not record.size:
        return output
    return output.reshape(-1)[:: _step_of(output.size, record.size)]


def _step_of(size: int, kept: int) -> int:
    """The step that leaves `kept` of `size` values."""
    return -(-size // kept)


def relative_error(got: Array, expected: Array) -> float:
    """Largest difference over the range of `expected`; infinite for another shape or a non-number."""
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return float("inf")
    if not expected.size:
        return 0.0
    difference = float(np.abs(got.astype(np.float64) - expected).max())
    # A constant output has no range; it is compared with its own size.
    return difference / (float(np.ptp(expected)) or float(np.abs(expected).max()) or 1.0)


def correlation(got: Array, expected: Array) -> float:
    """Pearson's correlation; a flat array correlates with a flat one alone, a non-number with nothing."""
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return 0.0
    first, second = (each.astype(np.float64).ravel() for each in (got, expected))
    first, second = first - first.mean(), second - second.mean()
    lengths = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    return float(first @ second) / (lengths[0] * lengths[1])
