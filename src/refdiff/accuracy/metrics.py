"""Metrics of referring segmentation (METHOD §11).

In: masks [y, x] of an image. Out: numbers 0..1. "Sentence" = one phrase on one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Bool, Float

PRECISION_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""X of Pr@X."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Overlap of the answer and the true mask of one sentence."""

    intersection_px: int
    union_px: int
    best_iou: float
    """IoU of the best candidate: the score of a perfect choice."""

    @property
    def iou(self) -> float:
        """Intersection over union; 1 for two empty masks."""
        return self.intersection_px / self.union_px if self.union_px else 1.0


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics over many sentences."""

    count: int
    miou: float
    """Mean over sentences of I/U."""
    oiou: float
    """Sum of I over sum of U: large objects weigh more."""
    precision_at: dict[float, float]
    """X -> share of sentences whose IoU is above X, strictly."""
    oracle_miou: float
    """Mean of the best candidates: the limit of any choice among them."""


def iou(first: Bool, second: Bool) -> float:
    """Return the intersection over union of two masks [y, x]; 1 for two empty masks."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def overlap_px(answer: Bool, truth: Bool) -> tuple[int, int]:
    """Return the intersection and the union of two masks [y, x] in px."""
    shared = int(np.count_nonzero(answer & truth))
    return shared, int(np.count_nonzero(answer)) + int(np.count_nonzero(truth)) - shared


def pairwise_iou(rows: Bool, columns: Bool) -> Float:
    """Return the IoU of every pair of masks: [n, y, x], [m, y, x] -> [n, m]; two empty masks give 1."""
    first = rows.reshape(len(rows), math.prod(rows.shape[1:])).astype(np.float32)  # [n, y*x]
    second = columns.reshape(len(columns), math.prod(columns.shape[1:])).astype(np.float32)  # [m, y*x]
    shared = first @ second.T  # [n, m], exact below 2**24 px
    unions = first.sum(axis=1)[:, None] + second.sum(axis=1)[None, :] - shared
    return np.where(unions > 0, shared / np.maximum(unions, 1), 1).astype(np.float32)


def ious_with(truth: Bool, masks: Iterable[Bool]) -> tuple[float, ...]:
    """Return the IoU of each mask [y, x] with a truth [y, x] that is not empty."""
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    inside = truth[box]
    truth_px = int(np.count_nonzero(inside))
    ious = []
    for mask in masks:
        shared = int(np.count_nonzero(mask[box] & inside))
        ious.append(shared / (int(np.count_nonzero(mask)) + truth_px - shared))
    return tuple(ious)


def overlap(answer: Bool, truth: Bool, candidates: Bool) -> Overlap:
    """Measure one sentence.

    Args:
        answer: [y, x]; all False where no mask was returned.
        truth: [y, x].
        candidates: [n, y, x], the masks that could have been chosen; n may be 0.
    """
    return Overlap(
        intersection_px=int(np.count_nonzero(answer & truth)),
        union_px=int(np.count_nonzero(answer | truth)),
        best_iou=float(pairwise_iou(candidates, truth[None])[:, 0].max(initial=0.0)),
    )


def metrics(overlaps: Sequence[Overlap]) -> Metrics:
    """Summarize sentences; every number is 0 if there are none."""
    count = len(overlaps)
    ious = np.array([each.iou for each in overlaps], dtype=np.float64)
    union = sum(each.union_px for each in overlaps)
    return Metrics(
        count=count,
        miou=float(ious.mean()) if count else 0.0,
        oiou=sum(each.intersection_px for each in overlaps) / union if union else 0.0,
        precision_at={level: float((ious > level).mean()) if count else 0.0 for level in PRECISION_LEVELS},
        oracle_miou=float(np.mean([each.best_iou for each in overlaps])) if count else 0.0,
    )


Interval = tuple[float, float]
"""Lower and upper end."""

_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 50


_DRAWS = 20_000


def bounded_mean_interval(
    values: Sequence[float],
    *,
    lowest: float = 0.0,
    highest: float = 1.0,
    count: float | None = None,
    level: float = 0.95,
) -> Interval:
    """Return Gaffke's interval for the mean of a bounded quantity, which also holds for few samples.

    Each end is a quantile of the Bayesian bootstrap with one more sample at that end of the range (Gaffke
    2005, Learned-Miller and Thomas 2019), found with 20,000 draws. For values of 0 and 1 it is the
    Clopper-Pearson interval of a share.

    Args:
        values: one for each sample, `lowest`..`highest`; at least one.
        lowest: smallest possible value.
        highest: largest possible value.
        count: as if there were this many samples, distributed like `values`; their number if None.
        level: probability of the interval.
    """
    distinct, repeats = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)  # [k]
    rng = np.random.default_rng(0)
    shape = repeats * ((len(values) if count is None else count) / len(values))
    masses = rng.standard_gamma(shape, size=(_DRAWS, len(distinct)))  # [r, k]
    bound = -np.log((np.arange(_DRAWS) + 0.5) / _DRAWS)  # [r], exponential, evenly drawn
    sums, total = masses @ distinct, masses.sum(axis=1) + bound
    tail = 100 * (1 - level) / 2
    return (
        float(np.percentile((sums + bound * lowest) / total, tail)),
        float(np.percentile((sums + bound * highest) / total, 100 - tail)),
    )


def bootstrap_interval(
    groups: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a percentile bootstrap interval that resamples groups, such as the sentences of one image.

    Args:
        groups: [g, k], k sums of each group.
        statistic: sums [r, k] of r resamples -> the statistic of each, [r].
        level: probability of the interval.
        seed: of the resampling.
    """
    count = len(groups)
    if count == 0:
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        picked = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES_AT_ONCE)  # [r, g]
        values.append(statistic(picked @ groups))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(np.concatenate(values), [tail, 100 - tail])
    return float(low), float(high)
