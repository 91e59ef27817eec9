"""How often which magnitudes occur in a tensor, over many runs: counters whose reach doubles as needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Array

METHODS = ("minmax", "percentile", "entropy")
"""How a range is taken from what occurred. Here, because `api` reads it where onnx is not installed."""

BINS = 2048
"""Counters; a doubling of the reach adds neighbours up."""

LEVELS = 128
"""Magnitudes that symmetric int8 tells apart, zero included."""

_STEP = 8
"""Bins between two reaches that `entropy_reach` tries."""


class Histogram:
    """Counts of magnitudes."""

    def __init__(self) -> None:
        self._counts = np.zeros(BINS, np.int64)
        self._zeros = 0
        self._width = 0.0
        self.largest = 0.0

    def add(self, values: Array) -> None:
        """Count finite values of any shape."""
        magnitudes = np.abs(values).ravel()
        largest = float(magnitudes.max(initial=0.0))
        if largest == 0.0:
            return
        self.largest = max(self.largest, largest)
        if self._width == 0.0:
            self._width = largest / BINS
        while self._width * BINS < largest:
            self._counts = np.concatenate(
                [self._counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)]
            )
            self._width *= 2
        self._zeros += magnitudes.size - int(np.count_nonzero(magnitudes))
        self._counts += np.histogram(magnitudes, BINS, range=(0.0, self._width * BINS))[0]

    def entropy_reach(self) -> float:
        """The reach whose `LEVELS` levels tell most of what the magnitudes told.

        Smallest Kullback-Leibler divergence between the distribution cut off at a reach, the rest counted to
        its last bin, and the same held in `LEVELS` levels (Migacz, "8-bit Inference with TensorRT", 2017).
        Exact zeros do not count: every reach holds them exactly, and those of a ReLU would outweigh the rest.
        """
        if self.largest == 0.0:
            return 0.0
        used = min(BINS, int(np.ceil(self.largest / self._width)))
        tried = range(min(LEVELS, used), used + 1, _STEP)
        counts = self._counts.copy()
        counts[0] -= self._zeros
        best = min(tried, key=lambda bins: _divergence(counts, bins))
        return min(self.largest, self._width * best)


def _divergence(counts: NDArray[np.int64], bins: int) -> float:
    kept = counts[:bins].astype(np.float64)
    cut = kept.copy()
    cut[-1] += counts[bins:].sum()
    levels = np.minimum(np.arange(bins) * LEVELS // bins, LEVELS - 1)
    sums = np.bincount(levels, kept, minlength=LEVELS)
    filled = np.bincount(levels, kept > 0, minlength=LEVELS)
    held = np.where(kept > 0, (sums / np.maximum(filled, 1))[levels], 0.0)
    # A bin that only the cut-off rest fills has no level of its own: it counts as lost, not as infinite.
    held = np.maximum(held, 1e-9)
    first, second = cut / cut.sum(), held / held.sum()
    some = first > 0
    return float((first[some] * np.log(first[some] / second[some])).sum())
