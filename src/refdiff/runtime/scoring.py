"""Which candidate the phrase means (METHOD §7), and the candidates of mode `gen` (METHOD §8).

Axes: n = candidates, y/x = picture rows/columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refdiff.contracts.options import FusionOptions, Mode
from refdiff.contracts.results import Candidates, Scores, Segmentation
from refdiff.contracts.session import Bool, Float
from refdiff.errors import EngineError
from refdiff.runtime import masks
from refdiff.runtime.phrase import Phrase

PARTS: Mapping[Mode, tuple[str, ...]] = {
    "gen": ("generative",),
    "gen+seg": ("generative",),
    "disc+seg": ("hard", "soft", "place"),
    "full": ("hard", "soft", "generative", "place"),
}
"""What each mode's score is made of."""

LEVELS = np.arange(5, 100, 5, dtype=np.float32) / 100
"""Where mode `gen` cuts the map: 5, 10, ..., 95 % (METHOD §8)."""

_EPS = 1e-6


def attention_contrast(heat: Float, candidate_masks: Bool, balance: float = 1.0, eps: float = _EPS) -> Float:
    """Mean heat inside each mask against mean heat outside it: (2-b)*inside - b*outside (METHOD §7, §10.6).

    Args:
        heat: [y, x], 0..1.
        candidate_masks: [n, y, x].
        balance: b; 1 is the release's plain difference.
        eps: added to both pixel counts, as released: an empty or full mask counts its absent side as zero.

    Returns:
        [n]; -1..1 at b = 1.
    """
    inside, outside = _mean_heat(heat, candidate_masks, eps)
    return ((2 - balance) * inside - balance * outside).astype(np.float32)


def between_class_variance(heat: Float, candidate_masks: Bool) -> Float:
    """How well each mask splits the map: w_in * w_out * (mean_in - mean_out)^2 (METHOD §8). Returns [n]."""
    inside, outside = _mean_heat(heat, candidate_masks, _EPS)
    share = masks.areas(candidate_masks) / heat.size
    return (share * (1 - share) * (inside - outside) ** 2).astype(np.float32)


def fuse(
    weights: FusionOptions, mode: Mode, parts: Mapping[str, Float], kept: Bool, *, drop_filtered: bool
) -> Scores:
    """Weigh the parts of the score and apply the area filter.

    Args:
        weights: of the parts.
        mode: which parts count; the others become zero.
        parts: some of `hard`, `soft`, `generative`, `place`, each [n]; what is absent is zero.
        kept: [n], the area filter.
        drop_filtered: True: a filtered candidate is at -inf. False: it is at 0, as released, and so
            wins against negative scores.

    Raises:
        EngineError: a part is not finite.
    """
    used = {name: _part(parts, name, kept, counts=name in PARTS[mode]) for name in PARTS["full"]}
    if mode in ("gen", "gen+seg"):
        total = used["generative"]
    else:
        total = np.sum(
            [getattr(weights, name) * part.astype(np.float64) for name, part in used.items()], axis=0
        )
    return Scores(total=np.where(kept, total, -np.inf if drop_filtered else 0.0).astype(np.float32), **used)


def choose(scores: Scores) -> int | None:
    """Index of the best candidate, the first of equals; None when no candidate can win."""
    if not np.isfinite(scores.total).any():
        return None
    return int(scores.total.argmax())


def conclude(
    query: Phrase, heat: Float | None, candidates: Candidates, scores: Scores, nothing: str
) -> Segmentation:
    """The answer to the phrase: the best candidate, or an empty mask and `nothing`, the reason."""
    index = choose(scores)
    found = index is not None
    return Segmentation(
        phrase=query.text,
        root=query.root,
        mask=candidates.masks[index] if found else np.zeros(candidates.masks.shape[1:], dtype=np.bool_),
        index=index,
        score=float(scores.total[index]) if found else float("-inf"),
        scores=scores,
        heat=heat,
        candidates=candidates,
        reason=None if found else nothing,
    )


def level_sets(heat: Float) -> Candidates:
    """The masks {heat >= level} of mode `gen`, largest first; a level above all heat is not kept."""
    levels = heat[None] >= LEVELS[:, None, None]  # [n, y, x]
    areas_px = masks.areas(levels)
    return Candidates(
        masks=levels,
        predicted_iou=np.ones(len(levels), dtype=np.float32),
        areas_px=areas_px,
        boxes_xyxy_px=masks.boxes(levels),
        kept=areas_px > 0,
    )


def score_level_sets(heat: Float, levels: Candidates, weights: FusionOptions) -> Scores:
    """The map's level sets, scored by the selector of the options; `generative` is always the contrast."""
    contrast = attention_contrast(heat, levels.masks, weights.contrast_balance)
    if weights.level_selector == "between-class":
        total = between_class_variance(heat, levels.masks)
    else:
        total = contrast
    nothing = np.zeros(len(levels), dtype=np.float32)
    return Scores(
        hard=nothing,
        soft=nothing,
        generative=contrast,
        place=nothing,
        total=np.where(levels.kept, total, -np.inf).astype(np.float32),
    )


def _mean_heat(heat: Float, candidate_masks: Bool, eps: float) -> tuple[Float, Float]:
    """Mean heat inside and outside each mask, each [n]."""
    areas_px = masks.areas(candidate_masks)
    inside = np.array([heat[mask].sum(dtype=np.float64) for mask in candidate_masks])
    everything = heat.sum(dtype=np.float64)
    outside = (everything - inside) / (heat.size - areas_px + eps)
    return (inside / (areas_px + eps)).astype(np.float32), outside.astype(np.float32)


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
