"""Measure the ranges of eight-bit tensors, and the exponents of SmoothQuant, on recorded feeds.

A range is the largest magnitude that a tensor can hold; eight-bit types are symmetric, from minus it to plus
it. Methods: "minmax" keeps every value, "percentile" all but the largest 0.001 %, and "entropy" takes the
range with the smallest loss of information.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from refdiff.calibration.recipes import METHODS
from refdiff.contracts.session import Array, Float
from refdiff.engines.intermediate_tensors import probe
from refdiff.errors import InputError
from refdiff.passes.graph_files import load_graph
from refdiff.passes.smooth_quant import MAX_EXPONENT, largest_by_row, smoothable_tensors

Reduction = Callable[[ir.Value], Sequence[ir.Node]]
"""Maps a tensor (float32) to nodes that are inserted behind it in the running graph; the last one's result is
read. So one run serves all tensors, and little data leaves it."""

PERCENT = 99.999
"""Percentage of all values that the method "percentile" keeps."""

BINS = 2048
"""Bins of a histogram."""

LEVELS = 128
"""Magnitudes that symmetric int8 distinguishes, zero included."""

_STEP = 8
"""Bins between two ranges that `entropy_range` tries."""


class Histogram:
    """Counts magnitudes in bins; the bins widen twofold when a larger magnitude comes."""

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

    def entropy_range(self) -> float:
        """Return the range whose `LEVELS` levels keep most of the information.

        Smallest Kullback-Leibler divergence between the distribution cut off at a range, the rest counted in
        its last bin, and the same held in `LEVELS` levels (Migacz, "8-bit Inference with TensorRT", 2017).
        Exact zeros do not count: every range holds them exactly, and those of a ReLU would outweigh the rest.
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


def collect_ranges(
    graph: Path,
    feeds: Sequence[Mapping[str, Array]],
    tensors: Sequence[str],
    *,
    method: str = "percentile",
    smoothing: Mapping[str, Sequence[int]] | None = None,
    percent: float = PERCENT,
) -> dict[str, float]:
    """Measure the range of each tensor over all feeds.

    Args:
        graph: an fp32 graph's file.
        feeds: one mapping per run.
        tensors: their names.
        method: one of `METHODS`.
        smoothing: tensor -> exponents of two that its channels will be divided by.
        percent: share of the values that the range of method "percentile" holds, in %.

    Returns:
        Tensor -> range.

    Raises:
        InputError: no such method, no feeds, or a tensor that is not finite.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r} for ranges; choose one of: {', '.join(METHODS)}")
    check_feeds_exist(graph, feeds)
    if method == "entropy":
        return _entropy_ranges(graph, feeds, tensors, smoothing or {})
    kept = 1.0 if method == "minmax" else percent / 100.0
    return _tail_ranges(graph, feeds, tensors, smoothing or {}, kept)


def check_feeds_exist(graph: Path, feeds: Sequence[Mapping[str, Array]]) -> None:
    """Refuse an empty list of feeds.

    Raises:
        InputError: it is empty.
    """
    if not feeds:
        raise InputError(f"{graph.stem} was never run in the recorded feeds; record them in mode full")


def _tail_ranges(
    graph: Path,
    feeds: Sequence[Mapping[str, Array]],
    tensors: Sequence[str],
    smoothing: Mapping[str, Sequence[int]],
    kept: float,
) -> dict[str, float]:
    """Return the magnitudes that the share `kept` of all values do not exceed, exactly.

    Every run returns its largest values: as many as are left out of all runs together if the runs have one
    size. Where a smaller run may hold more of them, it is run again for more.
    """
    ranges, share = dict[str, float](), (1.0 - kept) * len(feeds)
    pending = list(tensors)
    while pending:
        found: dict[str, list[Tail]] = {name: [] for name in pending}
        for index, name, values in probe(graph, feeds, pending, reduction=tail_reduction(share, smoothing)):
            tail = Tail.read(values)
            check_finite(graph, name, index, finite=tail.finite)
            found[name].append(tail)
        for name, tails in found.items():
            range_ = _largest_kept(tails, kept)
            if range_ is not None:
                ranges[name] = range_
        pending = [name for name in pending if name not in ranges]
        share *= 4
    return {name: ranges[name] for name in tensors}


def _largest_kept(tails: Sequence[Tail], kept: float) -> float | None:
    """Return the largest of the values kept; None if a run returned too few values to know."""
    size = sum(tail.size for tail in tails)
    if size == 0:
        return 0.0
    left_out = size - math.ceil(size * kept)
    together = np.sort(np.concatenate([tail.largest for tail in tails]))[::-1]
    if len(together) <= left_out:
        return None
    range_ = together[left_out]
    short = any(len(tail.largest) < tail.size and tail.largest[-1] > range_ for tail in tails)
    return None if short else float(range_)


def _entropy_ranges(
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
    return {name: histogram.entropy_range() for name, histogram in histograms.items()}


def smoothing_exponents(
    path: Path, feeds: Sequence[Mapping[str, Array]], nodes: Collection[str], *, strength: float = 0.5
) -> dict[str, tuple[int, ...]]:
    """Compute the exponents of two that SmoothQuant divides by, per channel of each smoothable tensor.

    Args:
        path: an fp32 graph.
        feeds: one mapping per run.
        nodes: names of the nodes that will be quantized.
        strength: a, 0..1: how much of the difficulty moves from activations to weights.

    Raises:
        InputError: a strength outside 0..1, no feeds, or a tensor or weight that is not finite.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"got smoothing strength {strength}, expected 0 to 1")
    check_feeds_exist(path, feeds)
    groups = smoothable_tensors(load_graph(path).graph, nodes)
    activations = _largest_by_channel(path, feeds, tuple(groups))
    result = {}
    for name, readers in groups.items():
        weights = np.max([largest_by_row(node) for node in readers], axis=0)
        if not np.isfinite(weights).all():
            raise InputError(
                f"a weight that reads {name} holds NaN or infinity, expected finite values; "
                "fix the model first"
            )
        result[name] = _balance(activations[name], weights, strength)
    return result


def _largest_by_channel(
    path: Path, feeds: Sequence[Mapping[str, Array]], tensors: Sequence[str]
) -> dict[str, Float]:
    """Return the largest magnitude of each channel, the last axis, over all feeds."""
    largest: dict[str, Float] = {}
    for index, name, channels in probe(path, feeds, tensors, reduction=channel_maxima):
        check_finite(path, name, index, finite=bool(np.isfinite(channels).all()))
        largest[name] = np.maximum(largest[name], channels) if name in largest else channels
    return largest


def _balance(activations: Float, weights: Float, strength: float) -> tuple[int, ...]:
    """Return the exponents of one tensor; a channel of zeros gets the common factor."""
    used = (activations > 0) & (weights > 0)
    steps = np.zeros(len(activations))
    steps[used] = strength * np.log2(activations[used]) - (1 - strength) * np.log2(weights[used])
    if used.any():
        steps[used] -= steps[used].mean()  # one factor for all channels would change nothing
    return tuple(int(step) for step in np.rint(np.clip(steps, -MAX_EXPONENT, MAX_EXPONENT)))


def check_finite(graph: Path, name: str, index: int, *, finite: bool) -> None:
    """Refuse a tensor that is not finite: it has no range.

    Raises:
        InputError: it is not finite.
    """
    if not finite:
        raise InputError(
            f"{graph.stem}: {name} holds NaN or infinity in fp32, on record {index}; "
            "fix the model first (refdiff audit)"
        )


@dataclass(frozen=True)
class Tail:
    """The largest magnitudes of one tensor in one run."""

    size: int
    """Number of values in the tensor."""
    finite: bool
    """True if all of them are finite."""
    largest: Array
    """[k] float64, largest first."""

    @classmethod
    def read(cls, values: Array) -> Tail:
        """Read the result of a `tail_reduction`."""
        return cls(size=int(values[0]), finite=bool(np.isfinite(values[1])), largest=values[2:])


def tail_reduction(share: float, smoothing: Mapping[str, Sequence[int]]) -> Reduction:
    """Return a reduction to [2 + k] float64: size, a sum that is not finite if a value is not, k largest.

    Args:
        share: k is this share of the values, rounded up, plus one, and at most their number.
        smoothing: tensor -> exponents of two that its channels are divided by first.
    """

    def reduction(value: ir.Value) -> Sequence[ir.Node]:
        chain = _NodeChain()
        divided, powers = value, smoothing.get(str(value.name))
        if powers is not None:
            divided = chain.node("Div", value, chain.constant(np.exp2(np.array(powers, np.float32))))
        flat = chain.node("Reshape", chain.node("Abs", divided), chain.constant([-1]))
        size = chain.node("Shape", flat)  # [1]
        real = chain.node("Cast", size, to=ir.DataType.DOUBLE)
        part = chain.node("Ceil", chain.node("Mul", real, chain.constant(np.array([share], np.float64))))
        most = chain.node("Add", chain.node("Cast", part, to=ir.DataType.INT64), chain.constant([1]))
        largest = chain.node("TopK", flat, chain.node("Min", most, size), outputs=2)
        total = chain.node("ReduceSum", flat, chain.constant([0]))  # [1]
        facts = chain.node("Concat", total, largest, axis=0)
        chain.node("Concat", real, chain.node("Cast", facts, to=ir.DataType.DOUBLE), axis=0)
        return chain.nodes

    return reduction


def channel_maxima(value: ir.Value) -> Sequence[ir.Node]:
    """Reduce to [channels], the last axis: the largest magnitude of each channel, NaN if it holds NaN."""
    chain = _NodeChain()
    flat = chain.node("Flatten", chain.node("Abs", value), axis=-1)  # [values, channels]
    largest = chain.node("ReduceMax", flat, chain.constant([0]), keepdims=0)
    # A maximum may pass over NaN; a sum does not.
    total = chain.node("ReduceSum", flat, chain.constant([0]), keepdims=0)
    chain.node("Where", chain.node("IsNaN", total), total, largest)
    return chain.nodes


class _NodeChain:
    """Collects nodes as they are made."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def node(self, operator: str, *inputs: ir.Value, outputs: int = 1, **attributes: int) -> ir.Value:
        node = ir.Node(
            "",
            operator,
            inputs,
            attributes=[ir.AttrInt64(name, int(value)) for name, value in attributes.items()],
            num_outputs=outputs,
        )
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, values: Sequence[int] | Array) -> ir.Value:
        array = np.asarray(values, np.int64) if isinstance(values, list) else np.asarray(values)
        node = ir.Node("", "Constant", [], attributes=[ir.AttrTensor("value", ir.tensor(array))])
        self.nodes.append(node)
        return node.outputs[0]
