"""Ridge logistic regression, and how good a score is at telling right answers from wrong ones.

Axes: s = samples, t = terms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

FOLDS = 5
"""Parts of a cross-validation."""

_ROUNDS = 50
_CLOSE = 1e-8


def cross_validate(design: Doubles, right: Flags, fold: NDArray[np.int64], penalty: float) -> Doubles:
    """Return the probability of each sample by a model that was fitted without its fold: [s].

    Args:
        design: [s, t], standardized terms.
        right: [s].
        fold: [s], 0 to FOLDS - 1.
        penalty: of the squared weights.
    """
    probability = np.zeros(len(right))
    for number in range(FOLDS):
        inside = fold == number
        if inside.any() and not inside.all():
            weights = solve(design[~inside], right[~inside], penalty)
            probability[inside] = _sigmoid(weights[0] + design[inside] @ weights[1:])
    return probability


def solve(design: Doubles, right: Flags, penalty: float) -> Doubles:
    """Return bias and weights [1 + t] of the ridge logistic regression, by Newton's method."""
    rows = np.column_stack([np.ones(len(design)), design])
    ridge = np.full(rows.shape[1], penalty)
    ridge[0] = 1e-6  # the bias is free
    weights = np.zeros(rows.shape[1])
    for _ in range(_ROUNDS):
        probability = _sigmoid(rows @ weights)
        gradient = rows.T @ (probability - right) + ridge * weights
        curvature = (rows * (probability * (1 - probability))[:, None]).T @ rows + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < _CLOSE:
            break
    return weights


def _sigmoid(logits: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


def log_loss(probability: Doubles, right: Flags) -> float:
    """Return the mean negative logarithm of the probability of what is the case."""
    inside = np.clip(np.where(right, probability, 1 - probability), 1e-9, 1)
    return float(-np.log(inside).mean())


def auroc(values: Doubles, right: Flags) -> float:
    """Return the probability that a right answer has a higher value than a wrong one; ties count half."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(1, len(values) + 1)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.bincount(inverse, ranks) / counts)[inverse]
    positive = int(right.sum())
    negative = len(right) - positive
    if not positive or not negative:
        return 0.5
    return float((ranks[right].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibration_error(probability: Doubles, right: Flags, bins: int = 10) -> float:
    """Return the mean of |probability - share of right answers| over bins, weighted by their samples."""
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [
        abs(probability[index == at].mean() - right[index == at].mean()) * (index == at).mean()
        for at in range(bins)
        if (index == at).any()
    ]
    return float(sum(gaps))


def coverage(values: Doubles, right: Flags, *, precision: float) -> float:
    """Return the largest share of the right answers above a threshold whose precision is high enough."""
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(right[order])
    enough = hits >= precision * np.arange(1, len(hits) + 1)
    return float(hits[enough].max() / right.sum()) if enough.any() and right.any() else 0.0
