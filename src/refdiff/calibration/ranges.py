"""How far each tensor reaches, on recorded feeds.

In: a graph, feeds, names of tensors. Out: the largest magnitude each is given a level for. Symmetric: from
minus that to plus that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from refdiff.calibration.histogram import Histogram
from refdiff.calibration.probing import Probe
from refdiff.contracts.session import Array
from refdiff.errors import InputError

METHODS = ("minmax", "percentile", "entropy")

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
    histograms = {name: Histogram() for name in tensors}
    for index, name, values in probe(graph, feeds, tensors):
        if not np.isfinite(values).all():
            raise InputError(
                f"{graph.stem}: {name} holds NaN or infinity in fp32, on record {index}; "
                "mend the model first (refdiff audit)"
            )
        exponents = (smoothing or {}).get(name)
        histograms[name].add(
            values if exponents is None else values / np.exp2(np.array(exponents, np.float32))
        )
    return {name: _reach(histogram, method) for name, histogram in histograms.items()}


def _reach(histogram: Histogram, method: str) -> float:
    if method == "minmax":
        return histogram.largest
    return histogram.percentile_reach(PERCENT) if method == "percentile" else histogram.entropy_reach()
