"""Agreement of runtime and reference: two answers to one sample, compared part by part.

In: two `Segmentation`s. Out: numbers, 1 where they agree.

Axes: n/m = candidates of the reference/the runtime, y/x = image rows/columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.accuracy.metrics import iou, pairwise_iou
from refdiff.contracts.parity import correlation
from refdiff.contracts.session import Float
from refdiff.runtime.segmentation import Segmentation

SAME_CANDIDATE = 0.9
"""IoU from which two candidates are one: well above the 0.7 at which SAM merges boxes."""

TIE = 1e-4
"""Scores of the reference closer than this are a tie: either order of them agrees."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement on one sample; a part is None where the mode or the image has nothing to compare."""

    heat_correlation: float | None
    """Pearson correlation over the image's pixels."""
    candidate_recall: float
    """Share of the reference's candidates that the runtime found too, one to one."""
    rank_agreement: float | None
    """Share of pairs of common candidates that both put in the same order."""
    mask_iou: float
    """IoU of the two answers."""
    argmax_agreement: float
    """1 when both chose the same candidate, or both none; else 0.

    The same candidate is, of all the runtime found, the one nearest to the reference's choice, where their
    IoU is `SAME_CANDIDATE` or more. How well edges agree is `mask_iou`'s to say: in fewer bits every one
    moves a little.
    """


def compare(reference: Segmentation, runtime: Segmentation) -> Agreement:
    """Compare two answers to one phrase on one image."""
    ious = pairwise_iou(np.asarray(reference.candidates.masks), np.asarray(runtime.candidates.masks))
    pairs = match_candidates(ious)
    answers = iou(reference.mask, runtime.mask)
    return Agreement(
        heat_correlation=_heat_correlation(reference.heat, runtime.heat),
        candidate_recall=len(pairs) / len(reference.candidates) if len(reference.candidates) else 1.0,
        rank_agreement=_rank_agreement(reference, runtime, pairs),
        mask_iou=answers,
        argmax_agreement=float(_same_choice(reference.index, runtime.index, ious)),
    )


def parts(agreements: Sequence[Agreement]) -> dict[str, tuple[float, ...]]:
    """Return the values of every part over the samples that have it; a part that none has is omitted."""
    values = {
        field.name: tuple(
            float(value) for each in agreements if (value := getattr(each, field.name)) is not None
        )
        for field in dataclasses.fields(Agreement)
    }
    return {name: each for name, each in values.items() if each}


def summarize(agreements: Sequence[Agreement]) -> dict[str, float]:
    """Return the mean of every part over the samples that have it; a part that none has is omitted."""
    return {name: float(np.mean(values)) for name, values in parts(agreements).items()}


def match_candidates(ious: Float, at_least: float = SAME_CANDIDATE) -> list[tuple[int, int]]:
    """Pair rows with columns of [n, m], best IoU first, each used once."""
    pairs: list[tuple[int, int]] = []
    rows, columns = set[int](), set[int]()
    for flat in np.argsort(-ious, axis=None, kind="stable"):
        row, column = divmod(int(flat), ious.shape[1])
        if ious[row, column] < at_least:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def order_agreement(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Return the share of pairs (i, j) that both arrays [k] order equally; None if there is no pair."""
    upper = np.triu_indices(len(first), k=1)
    one, other = ((each[:, None] - each[None, :])[upper] for each in (first, second))
    if not one.size:
        return None
    return float(((np.abs(one) <= TIE) | (np.sign(one) == np.sign(other))).mean())


def _same_choice(reference: int | None, runtime: int | None, ious: Float) -> bool:
    """Return whether `ious` [n, m] pairs both choices; any of equally near candidates is accepted."""
    if reference is None or runtime is None:
        return reference is None and runtime is None
    return bool(ious[reference, runtime] >= max(SAME_CANDIDATE, ious[reference].max()))


def _heat_correlation(first: Float | None, second: Float | None) -> float | None:
    return None if first is None or second is None else correlation(first, second)


def _rank_agreement(
    reference: Segmentation, runtime: Segmentation, pairs: Sequence[tuple[int, int]]
) -> float | None:
    """Return the agreement over candidates that both found and that can win in both."""
    one = np.array([reference.scores.total[row] for row, _ in pairs], dtype=np.float64)
    other = np.array([runtime.scores.total[column] for _, column in pairs], dtype=np.float64)
    usable = np.isfinite(one) & np.isfinite(other)
    return order_agreement(one[usable], other[usable])
