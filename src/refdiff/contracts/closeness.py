"""How far a graph's output is from what it should be: the one measure that export and check share."""

from __future__ import annotations

import numpy as np

from refdiff.contracts.session import Array


def thinned(output: Array, most_bytes: int) -> Array:
    """The output, or every n-th of its values as one row, n as small as `most_bytes` allows."""
    if output.nbytes <= most_bytes:
        return output
    return output.reshape(-1)[:: -(-output.nbytes // most_bytes)]


def recorded_part(output: Array, record: Array) -> Array:
    """What of an output a golden record holds: all of it, or what `thinned` left, as one row."""
    if record.shape == output.shape or not record.size:
        return output
    return output.reshape(-1)[:: -(-output.size // record.size)]


def relative_error(got: Array, expected: Array) -> float:
    """Largest difference over the range of `expected`; infinite for another shape or a non-number."""
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return float("inf")
    if not expected.size:
        return 0.0
    difference = float(np.abs(got.astype(np.float64) - expected).max())
    # A constant output has no range; it is compared with its own size.
    return difference / (float(np.ptp(expected)) or float(np.abs(expected).max()) or 1.0)
