"""The fused score of each candidate, and the choice (METHOD §7, §8).

Axes: n = candidates, y/x = image rows/columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refdiff.contracts.options import Mode, Options
from refdiff.contracts.results import Candidates, Masks, Scores
from refdiff.contracts.session import Bool, Float
from refdiff.errors import EngineError
from refdiff.runtime import masks
from refdiff.runtime.cautions import phrase_cautions
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.segmentation import NOT_CALIBRATED, Segmentation

PARTS: Mapping[Mode, tuple[str, ...]] = {
    "gen": ("generative",),
    "gen+seg": ("generative",),
    "disc+seg": ("hard", "soft", "place"),
    "full": ("hard", "soft", "generative", "place"),
}
"""The parts that each mode's score is made of."""

SPLIT = "split"
"""Name of the part by which mode `gen` may choose in place of `generative` (METHOD §8)."""

_EPS = 1e-6


def attention_contrast(
    heatmap: Float, candidate_masks: Masks, balance: float = 1.0, eps: float = _EPS
) -> Float:
    """Return mean heat inside each mask minus mean heat outside: (2-b)*inside - b*outside (METHOD §7, §10.6).

    Args:
        heatmap: [y, x], 0..1.
        candidate_masks: [n, y, x].
        balance: b; 1 is the release's plain difference.
        eps: added to both pixel counts, as released: an empty or full mask counts its absent side as zero.

    Returns:
        [n]; -1..1 at b = 1.
    """
    inside, outside = mean_heat(heatmap, candidate_masks, eps)
    return balanced_contrast(inside, outside, balance)


def balanced_contrast(inside: Float, outside: Float, balance: float) -> Float:
    """Return (2-b)*inside - b*outside of mean heats (METHOD §10.6), of their shape."""
    return ((2 - balance) * inside - balance * outside).astype(np.float32)


def mean_heat(heatmap: Float, candidate_masks: Masks, eps: float = _EPS) -> tuple[Float, Float]:
    """Return mean heat inside and outside each mask, each [n].

    Args:
        heatmap: [y, x], 0..1.
        candidate_masks: [n, y, x].
        eps: added to both pixel counts.
    """
    areas_px = masks.areas(candidate_masks)
    inside = np.array([heatmap[mask].sum(dtype=np.float64) for mask in candidate_masks])
    everything = heatmap.sum(dtype=np.float64)
    outside = (everything - inside) / (heatmap.size - areas_px + eps)
    return (inside / (areas_px + eps)).astype(np.float32), outside.astype(np.float32)


def between_class_variance(heatmap: Float, candidate_masks: Masks) -> Float:
    """Return how well each mask splits the heatmap, as between-class variance: [n] (METHOD §8).

    The variance is w_in * w_out * (mean_in - mean_out)^2, of the shares and mean heats of both sides.
    """
    inside, outside = mean_heat(heatmap, candidate_masks)
    share = masks.areas(candidate_masks) / heatmap.size
    return (share * (1 - share) * (inside - outside) ** 2).astype(np.float32)


def heatmap_scores(options: Options, heatmap: Float | None, candidates: Candidates) -> dict[str, Float]:
    """Return the parts of the score that the heatmap decides, each [n].

    Args:
        options: of the segmenter.
        heatmap: [y, x], 0..1; None has no parts.
        candidates: of the image, or the heatmap's level sets in mode `gen`.
    """
    if heatmap is None:
        return {}
    fusion = options.fusion
    parts = {"generative": attention_contrast(heatmap, candidates.masks, fusion.contrast_balance)}
    if options.mode == "gen" and fusion.level_selector == "between-class":
        parts[SPLIT] = between_class_variance(heatmap, candidates.masks)
    return parts


def fuse(options: Options, parts: Mapping[str, Float], kept: Bool) -> Scores:
    """Weigh the parts of the score and apply the area filter.

    Args:
        options: the mode, which decides the parts that count, their weights, and what a filtered candidate is
            worth: -inf with `drop_filtered` and in mode `gen`; otherwise 0, as released, so that it wins
            against negative scores.
        parts: some of `hard`, `soft`, `generative`, `place` and `SPLIT`, each [n]; an absent one is zero.
        kept: [n], the area filter.

    Raises:
        EngineError: a part is not finite.
    """
    mode = options.mode
    used = {name: _part(parts, name, kept, counts=name in PARTS[mode]) for name in PARTS["full"]}
    if mode in ("gen", "gen+seg"):
        total = parts.get(SPLIT, used["generative"])
    else:
        total = np.sum(
            [getattr(options.fusion, name) * part.astype(np.float64) for name, part in used.items()], axis=0
        )
    filtered = -np.inf if options.proposals.drop_filtered or mode == "gen" else 0.0
    return Scores(total=np.where(kept, total, filtered).astype(np.float32), **used)


def choose(scores: Scores) -> int | None:
    """Return the index of the best candidate, the first of equals; None when no candidate can win."""
    if not np.isfinite(scores.total).any():
        return None
    return int(scores.total.argmax())


def select(
    candidates: Candidates, scores: Scores, phrase: Phrase, heatmap: Float | None, *, empty_reason: str
) -> Segmentation:
    """Return the best candidate as the answer to the phrase, or an empty mask with `empty_reason`."""
    index = choose(scores)
    found = index is not None
    return Segmentation(
        phrase=phrase.text,
        root=phrase.root,
        mask=candidates.masks[index]
        if index is not None
        else np.zeros(candidates.masks.shape[1:], dtype=np.bool_),
        index=index,
        score=float(scores.total[index]) if found else float("-inf"),
        scores=scores,
        heat=heatmap,
        candidates=candidates,
        reason=None if found else empty_reason,
        cautions=(*phrase_cautions(phrase.text), *((NOT_CALIBRATED,) if found else ())),
    )


def _part(parts: Mapping[str, Float], name: str, kept: Bool, *, counts: bool) -> Float:
    if not counts or name not in parts:
        return np.zeros(len(kept), dtype=np.float32)
    part = parts[name].astype(np.float32)
    if not np.isfinite(part[kept]).all():
        raise EngineError(
            f"the {name} score is not finite, so an engine returned NaN or infinity;"
            " find it with: refdiff check BUNDLE"
        )
    return part
