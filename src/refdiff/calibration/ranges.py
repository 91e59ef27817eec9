"""How often which magnitudes occur in a tensor, over many runs: counters whose reach doubles as needed.

How far each tensor reaches, on recorded feeds.

In: a graph, feeds, names of tensors. Out: the largest magnitude each is given a level for. Symmetric: from
minus that to plus that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from refdiff.calibration.int8_recipe import METHODS
from refdiff.calibration.probing import Probe
from refdiff.calibration.reductions import Tail, channel_maxima, check_finite, tails
from refdiff.contracts.session import Array, Float
from refdiff.errors import InputError
from refdiff.passes.smooth_quant import LONGEST, row_reach, smoothable

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


PERCENT = 99.999
"""Of all values, kept by the method "percentile"."""


def collect(
    probe: Probe,
    graph: Path,
    feeds: Sequence[Mapping[str, Array]],
    tensors: Sequence[str],
    *,
    method: str = "percentile",
    smoothing: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, float]:
    """Reach of each tensor, over all feeds.

    Args:
        probe: runs the graph.
        graph: an fp32 graph's file.
        feeds: one mapping for each run.
        tensors: their names.
        method: "minmax" keeps everything, "percentile" all but a hundred-thousandth, "entropy" what tells
            most.
        smoothing: powers of two that the channels of some tensors will be divided by.

    Raises:
        InputError: no such method, no feeds, or a tensor that is not finite.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r} for ranges; choose one of: {', '.join(METHODS)}")
    if not feeds:
        raise InputError(f"{graph.stem} was never run in the recorded feeds; record them in mode full")
    if method == "entropy":
        return _entropy(probe, graph, feeds, tensors, smoothing or {})
    kept = 1.0 if method == "minmax" else PERCENT / 100.0
    return _tail_reaches(probe, graph, feeds, tensors, smoothing or {}, kept)


def _tail_reaches(
    probe: Probe,
    graph: Path,
    feeds: Sequence[Mapping[str, Array]],
    tensors: Sequence[str],
    smoothing: Mapping[str, Sequence[int]],
    kept: float,
) -> dict[str, float]:
    """The magnitude that the share `kept` of all values do not exceed, exactly.

    Every run hands out its largest values. If all runs are of one size, the share that is left out of all of
    them is enough from each; where a smaller run might hold more of them, it is asked again for more.
    """
    reaches, share = dict[str, float](), (1.0 - kept) * len(feeds)
    asked = list(tensors)
    while asked:
        found: dict[str, list[Tail]] = {name: [] for name in asked}
        for index, name, values in probe(graph, feeds, asked, reduction=tails(share, smoothing)):
            tail = Tail.read(values)
            check_finite(graph, name, index, finite=tail.finite)
            found[name].append(tail)
        for name, parts in found.items():
            reach = _cut(parts, kept)
            if reach is not None:
                reaches[name] = reach
        asked = [name for name in asked if name not in reaches]
        share *= 4
    return {name: reaches[name] for name in tensors}


def _cut(parts: Sequence[Tail], kept: float) -> float | None:
    """The largest of the values kept; None if a run did not hand out enough to tell."""
    size = sum(part.size for part in parts)
    if size == 0:
        return 0.0
    left_out = size - math.ceil(size * kept)
    together = np.sort(np.concatenate([part.largest for part in parts]))[::-1]
    if len(together) <= left_out:
        return None
    reach = together[left_out]
    short = any(len(part.largest) < part.size and part.largest[-1] > reach for part in parts)
    return None if short else float(reach)


def _entropy(
    probe: Probe,
    graph: Path,
    feeds: Sequence[Mapping[str, Array]],
    tensors: Sequence[str],
    smoothing: Mapping[str, Sequence[int]],
) -> dict[str, float]:
    histograms = {name: Histogram() for name in tensors}
    for index, name, values in probe(graph, feeds, tensors):
        check_finite(graph, name, index, finite=bool(np.isfinite(values).all()))
        powers = smoothing.get(name)
        histograms[name].add(values if powers is None else values / np.exp2(np.array(powers, np.float32)))
    return {name: histogram.entropy_reach() for name, histogram in histograms.items()}


def exponents(
    probe: Probe,
    path: Path,
    feeds: Sequence[Mapping[str, Array]],
    nodes: Collection[str],
    *,
    strength: float = 0.5,
) -> dict[str, tuple[int, ...]]:
    """The powers of two to divide by, per channel of each smoothable tensor.

    Args:
        probe: runs the graph.
        path: an fp32 graph.
        feeds: one mapping for each run.
        nodes: names of the nodes that will be quantised.
        strength: a, 0..1: how much of the difficulty moves from activations to weights.

    Raises:
        InputError: a strength outside 0..1, no feeds, or a tensor or weight that is not finite.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"got smoothing strength {strength}, expected 0 to 1")
    if not feeds:
        raise InputError(f"{path.stem} was never run in the recorded feeds; record them in mode full")
    groups = smoothable(ir.load(path).graph, nodes)
    reach = _channel_reach(probe, path, feeds, tuple(groups))
    result = {}
    for name, readers in groups.items():
        weights = np.max([row_reach(node) for node in readers], axis=0)
        if not np.isfinite(weights).all():
            raise InputError(
                f"a weight that reads {name} holds NaN or infinity, expected finite values; "
                "mend the model first"
            )
        result[name] = _balanced(reach[name], weights, strength)
    return result


def _channel_reach(
    probe: Probe, path: Path, feeds: Sequence[Mapping[str, Array]], tensors: Sequence[str]
) -> dict[str, Float]:
    """Largest magnitude in each channel, the last axis, over all feeds."""
    reach: dict[str, Float] = {}
    for index, name, channels in probe(path, feeds, tensors, reduction=channel_maxima):
        check_finite(path, name, index, finite=bool(np.isfinite(channels).all()))
        reach[name] = np.maximum(reach[name], channels) if name in reach else channels
    return reach


def _balanced(reach: Float, weights: Float, strength: float) -> tuple[int, ...]:
    """Exponents of one tensor; a channel that nothing passes through keeps the common factor."""
    alive = (reach > 0) & (weights > 0)
    steps = np.zeros(len(reach))
    steps[alive] = strength * np.log2(reach[alive]) - (1 - strength) * np.log2(weights[alive])
    if alive.any():
        steps[alive] -= steps[alive].mean()  # one factor for all channels would change nothing
    return tuple(int(step) for step in np.rint(np.clip(steps, -LONGEST, LONGEST)))
