"""Weights and scores of positions: where a phrase says the thing is.

The position ramp is METHOD §5; `edge` scores places, sizes and relations too (METHOD §10.4, §10.5).
Axes: n = candidates, y/x = image rows/columns. Boxes have inclusive corners.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Float
from refdiff.runtime.lexicon import Place
from refdiff.runtime.phrase import Phrase, RelationKind

Direction = Literal["left", "right"] | None
Doubles = NDArray[np.float64]

_SIMILARITY_SCALE = 100.0  # CLIP's trained logit scale: turns cosines into a choice among candidates
_SIDE_SOFTNESS = 0.05  # share of the image over which "left of" goes from unlikely to likely
_REACH = 0.15  # share of the image's diagonal at which "next to" has fallen to 1/e
_SIZE_SOFTNESS = 0.25  # in natural logarithms of area: 25 % larger is likely "bigger"
_FAR_HEAT = 0.5  # factor of the heat ramp at the far side of the image


def ramp(direction: Direction, width: int) -> Doubles:
    """Return the weight [x] of each column: 1 at the named edge, 0 from two thirds on (METHOD §5).

    Double precision, as released: a crop's products are truncated to uint8, and a rounded weight would show.

    Args:
        direction: None weighs every column 1.
        width: the image's width in px.
    """
    if direction is None:
        return np.ones(width)
    slope = 2 * width // 3
    rest = np.zeros(width - slope)
    if direction == "left":
        return np.concatenate([np.linspace(1, 0, slope), rest])
    # Not the mirrored left ramp: their last bits differ, and the truncation to uint8 shows it.
    return np.concatenate([rest, np.linspace(0, 1, slope)])


def heat_ramp(phrase: Phrase, size_yx: tuple[int, int]) -> Float:
    """Return a factor [y, x] for the heatmap: 1 at the side the phrase names, one half at the other."""
    factor = np.ones((1, 1), dtype=np.float32)
    if phrase.place in ("left", "right"):
        falling = np.linspace(1, _FAR_HEAT, size_yx[1], dtype=np.float32)
        factor = (falling if phrase.place == "left" else falling[::-1])[None, :]
    elif phrase.place in ("top", "bottom"):
        falling = np.linspace(1, _FAR_HEAT, size_yx[0], dtype=np.float32)
        factor = (falling if phrase.place == "top" else falling[::-1])[:, None]
    return np.broadcast_to(factor, size_yx)


def place_scores(
    phrase: Phrase,
    boxes_xyxy_px: NDArray[np.int64],
    areas_px: NDArray[np.int64],
    size_yx: tuple[int, int],
    other_similarity: Float | None,
) -> Float:
    """Score how well each candidate lies where the phrase says: the mean over its spatial cues.

    Args:
        phrase: parsed; each of place, superlative, size and relation is one cue.
        boxes_xyxy_px: [n, 4].
        areas_px: [n].
        size_yx: the image's size in px.
        other_similarity: [n], cosine of each candidate with the relation's other noun phrase; None leaves the
            relation out.

    Returns:
        [n], 0..1; all zero for a phrase without a spatial cue.
    """
    centers = _centers(boxes_xyxy_px, size_yx)
    cues: list[Doubles] = []
    if phrase.place is not None:
        cues.append(_place_score(phrase.place, centers))
    if phrase.superlative is not None or phrase.size is not None:
        wanted_large = (phrase.superlative or phrase.size) in ("largest", "large")
        order = _size_order(areas_px)
        cues.append(order if wanted_large else 1 - order)
    if phrase.relation is not None and other_similarity is not None:
        holds = _relation(phrase.relation.kind, boxes_xyxy_px, areas_px, size_yx)
        cues.append(_average_over_others(holds, other_similarity))
    if not cues:
        return np.zeros(len(areas_px), dtype=np.float32)
    return np.asarray(np.mean(cues, axis=0), dtype=np.float32)


def _centers(boxes_xyxy_px: NDArray[np.int64], size_yx: tuple[int, int]) -> Doubles:
    """Return box centers (x, y) as shares of the image: [n, 2], 0..1."""
    middles = (boxes_xyxy_px[:, :2] + boxes_xyxy_px[:, 2:] + 1) / 2
    return np.asarray(middles / np.array(size_yx[::-1]))


def _place_score(place: Place, centers: Doubles) -> Doubles:
    x, y = centers.T
    if place == "middle":
        return np.asarray(1 - np.hypot(x - 0.5, y - 0.5) / np.hypot(0.5, 0.5))
    return np.asarray({"left": 1 - x, "right": x, "top": 1 - y, "bottom": y}[place])


def _size_order(areas_px: NDArray[np.int64]) -> Doubles:
    """Return the share of the others that are smaller, equals counting half: [n], 0..1."""
    others = max(len(areas_px) - 1, 1)
    smaller = (areas_px[:, None] > areas_px[None, :]).sum(axis=1)
    equal = (areas_px[:, None] == areas_px[None, :]).sum(axis=1) - 1  # without itself
    return np.asarray((smaller + equal / 2) / others)


def _relation(
    kind: RelationKind,
    boxes_xyxy_px: NDArray[np.int64],
    areas_px: NDArray[np.int64],
    size_yx: tuple[int, int],
) -> Doubles:
    """Score how well "i is <kind> j" holds: [n, n], 0..1. Behind is higher in the image, in front lower."""
    x, y = _centers(boxes_xyxy_px, size_yx).T
    if kind == "next to":
        return np.asarray(np.exp(-_gaps(boxes_xyxy_px) / (_REACH * np.hypot(*size_yx))))
    if kind in ("bigger than", "smaller than"):
        logs = np.log(np.maximum(areas_px, 1))
        larger = _logistic((logs[:, None] - logs[None, :]) / _SIZE_SOFTNESS)
        return larger if kind == "bigger than" else 1 - larger
    # How far each lies before j along the named side: [n, n], positive where the relation holds.
    ahead = {
        "left of": x[None, :] - x[:, None],
        "right of": x[:, None] - x[None, :],
        "above": y[None, :] - y[:, None],
        "behind": y[None, :] - y[:, None],
        "below": y[:, None] - y[None, :],
        "in front of": y[:, None] - y[None, :],
    }[kind]
    return _logistic(ahead / _SIDE_SOFTNESS)


def _gaps(boxes_xyxy_px: NDArray[np.int64]) -> Doubles:
    """Return the distance between each two boxes in px, 0 where they touch: [n, n]."""
    low, high = boxes_xyxy_px[:, None, :2], boxes_xyxy_px[:, None, 2:] + 1
    between = np.maximum(low - high.transpose(1, 0, 2), low.transpose(1, 0, 2) - high)  # [n, n, 2]
    return np.asarray(np.hypot(*np.moveaxis(np.maximum(between, 0), -1, 0)))


def _average_over_others(holds: Doubles, other_similarity: Float) -> Doubles:
    """Average the relation to the other candidates, weighted by how likely each is the other thing: [n].

    The weights of all candidates add up to 1 and a candidate has no relation to itself, so what looks like
    the other thing scores low.
    """
    logits = _SIMILARITY_SCALE * other_similarity.astype(np.float64)
    weights = np.exp(logits - logits.max())
    partners = holds * (weights / weights.sum())[None, :]
    np.fill_diagonal(partners, 0)
    return np.asarray(partners.sum(axis=1))


def _logistic(value: Doubles) -> Doubles:
    return np.asarray(0.5 * (1 + np.tanh(value / 2)))
