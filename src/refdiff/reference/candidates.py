"""The candidates a phrase chooses from (METHOD §2), and their scores (METHOD §7, §8).

Axes: n = candidates, y/x = image rows/columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator

from refdiff.contracts.graphs import POINTS_PER_BATCH
from refdiff.contracts.options import FusionOptions, Mode, Options, ProposalOptions
from refdiff.contracts.results import Candidates, Scores
from refdiff.contracts.session import Bool, Float
from refdiff.contracts.stack import ModelStack
from refdiff.errors import MissingDependencyError


def propose(
    stack: ModelStack,
    options: ProposalOptions,
    image: NDArray[np.uint8],
    prompts: NDArray[np.float64] | None = None,
) -> Candidates:
    """Return all masks that SAM finds, best predicted IoU first; one all-true mask where it finds none.

    Args:
        stack: the models.
        options: grid, thresholds and filter.
        image: [y, x, 3].
        prompts: [m, 2], points (x, y) in 0..1 in place of the grid's.
    """
    generator = _generator(
        model=stack.sam,
        points_per_side=options.points_per_side if prompts is None else None,
        point_grids=None if prompts is None else [prompts],
        points_per_batch=POINTS_PER_BATCH,
        pred_iou_thresh=options.pred_iou_threshold,
        stability_score_thresh=options.stability_threshold,
        stability_score_offset=options.stability_offset,
        box_nms_thresh=options.nms_iou,
        min_mask_region_area=math.ceil(options.min_region_share * image.shape[0] * image.shape[1]),
    )
    found = generator.generate(image)
    if not found:
        whole = measure(np.ones((1, *image.shape[:2]), dtype=np.bool_), np.zeros(1), options)
        return replace(whole, kept=whole.kept & (not options.drop_filtered))  # `edge` answers "no match"
    masks = np.stack([record["segmentation"] for record in found])
    return measure(masks, np.array([record["predicted_iou"] for record in found]), options)


def _generator(**settings: Any) -> SamAutomaticMaskGenerator:
    try:
        return SamAutomaticMaskGenerator(**settings)
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise MissingDependencyError(
            "segment_anything removes small regions with OpenCV; install opencv-python-headless for the"
            " reference, or set proposals.min_region_share to 0"
        ) from error


def measure(masks: Bool, predicted_iou: NDArray[np.floating], options: ProposalOptions) -> Candidates:
    """Measure the masks [n, y, x] and filter them by area."""
    areas = masks.sum(axis=(1, 2), dtype=np.int64)
    return Candidates(
        masks=masks,
        predicted_iou=predicted_iou.astype(np.float32),
        areas_px=areas,
        boxes_xyxy_px=np.stack([box_of(mask) for mask in masks]),
        kept=keep_by_area(areas, masks[0].size, options),
    )


def keep_by_area(areas_px: NDArray[np.int64], image_px: int, options: ProposalOptions) -> Bool:
    """Return whether each area is among the largest, and above both minimum areas: [n]."""
    largest = np.zeros(len(areas_px), dtype=np.bool_)
    largest[np.argsort(-areas_px, kind="stable")[: options.keep_largest]] = True
    smallest = max(float(options.min_area_px), options.min_area_share * image_px)
    return largest & (areas_px > smallest)


def box_of(mask: Bool) -> NDArray[np.int64]:
    """Return x0, y0, x1, y1 of a mask [y, x], corners included; all zero for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(4, dtype=np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.int64)


ABSENT = 1e-6
"""Added to the pixel counts of both means, so that an absent side counts as zero (METHOD §7)."""

LEVELS_PERCENT = range(5, 100, 5)
"""Levels at which mode `gen` cuts the heatmap, in percent (METHOD §8)."""

_WEIGHTED = ("hard", "soft", "generative", "place")
_CLIP_ONLY = ("hard", "soft", "place")


def fuse(options: Options, parts: Mapping[str, NDArray[np.floating]], kept: Bool) -> Scores:
    """Weigh the parts of the score and apply the area filter.

    Args:
        options: weights, mode, and the score of a filtered candidate.
        parts: some of `hard`, `soft`, `generative` and `place`, each [n]; an absent one is zero.
        kept: [n].
    """
    used = {name: np.zeros(len(kept)) for name in _WEIGHTED} | {
        name: parts[name].astype(np.float64) for name in parts_of(options.mode) if name in parts
    }
    if options.mode in ("gen", "gen+seg"):
        score = used["generative"]
    else:
        score = sum((getattr(options.fusion, name) * used[name] for name in _WEIGHTED), np.zeros(len(kept)))
    # The release multiplies by the filter, so 0 of a filtered mask beats a negative score (METHOD §9).
    total = np.where(kept, score, -np.inf if options.proposals.drop_filtered else 0.0)
    return Scores(total=total.astype(np.float32), **{n: part.astype(np.float32) for n, part in used.items()})


def parts_of(mode: Mode) -> tuple[str, ...]:
    """Return the parts that a mode's score is made of (METHOD §1)."""
    if mode in ("gen", "gen+seg"):
        return ("generative",)
    return _CLIP_ONLY if mode == "disc+seg" else _WEIGHTED


def choose(scores: Scores) -> int | None:
    """Return the index of the best candidate, the first of equals; None when none can win."""
    best = int(scores.total.argmax())
    return best if np.isfinite(scores.total[best]) else None


def contrast(heatmap: Float, masks: Bool, balance: float) -> NDArray[np.float64]:
    """Return mean heat inside each mask minus mean heat outside it, balanced (METHOD §7, §10.6): [n]."""
    return np.array([(2.0 - balance) * i - balance * o for i, o in (_means(heatmap, mask) for mask in masks)])


def between_class(heatmap: Float, masks: Bool) -> NDArray[np.float64]:
    """Return w_in * w_out * (mean_in - mean_out)^2 of each mask (METHOD §8): [n]."""
    shares = masks.mean(axis=(1, 2))
    gaps = np.array([i - o for i, o in (_means(heatmap, mask) for mask in masks)])
    variance: NDArray[np.float64] = shares * (1.0 - shares) * gaps**2
    return variance


def level_sets(heatmap: Float) -> Candidates:
    """Return the proposals of mode `gen`, {heatmap >= level}; a level above all of it is not kept."""
    masks = np.stack([heatmap >= np.float32(percent) / np.float32(100) for percent in LEVELS_PERCENT])
    areas = masks.sum(axis=(1, 2), dtype=np.int64)
    return Candidates(
        masks=masks,
        predicted_iou=np.ones(len(masks), dtype=np.float32),
        areas_px=areas,
        boxes_xyxy_px=np.stack([box_of(mask) for mask in masks]),
        kept=areas > 0,
    )


def score_levels(options: FusionOptions, heatmap: Float, levels: Candidates) -> Scores:
    """Score the level sets by the selector of the options; an empty one cannot win."""
    contrasts = contrast(heatmap, np.asarray(levels.masks), options.contrast_balance)
    by_class = options.level_selector == "between-class"
    selected = between_class(heatmap, np.asarray(levels.masks)) if by_class else contrasts
    zero = np.zeros(len(levels), dtype=np.float32)
    return Scores(
        hard=zero,
        soft=zero,
        generative=contrasts.astype(np.float32),
        place=zero,
        total=np.where(levels.kept, selected, -np.inf).astype(np.float32),
    )


def _means(heatmap: Float, mask: Bool) -> tuple[float, float]:
    """Return mean heat inside and outside a mask [y, x]."""
    inside, outside = heatmap[mask].astype(np.float64), heatmap[~mask].astype(np.float64)
    return float(inside.sum() / (inside.size + ABSENT)), float(outside.sum() / (outside.size + ABSENT))
