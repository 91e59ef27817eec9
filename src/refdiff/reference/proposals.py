"""The masks a phrase chooses from (METHOD §2): SAM's own automatic mode, and the area filter.

Axes: n = candidates, y/x = image rows/columns.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator

from refdiff.contracts.graphs import POINTS_PER_BATCH
from refdiff.contracts.options import ProposalOptions
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import Bool
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
