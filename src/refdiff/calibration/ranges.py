"""How far each tensor reaches, on recorded feeds.

In: a graph, feeds, names of tensors. Out: the largest magnitude each is given a level for. Symmetric: from
minus that to plus that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from refdiff.calibration.histogram import METHODS, Histogram
from refdiff.calibration.probing import Probe
from refdiff.calibration.reductions import Tail, check_finite, tails
from refdiff.contracts.session import Array
from refdiff.errors import InputError

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
