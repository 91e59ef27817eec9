"""Prompt SAM with a followed mask, and read what it answers: the level `sam`.

SAM corrects what a similarity cannot follow: a thing that turns away from the camera, or changes its shape.

Axes: m = 3 masks, l = side of SAM's logits, y/x = image rows/columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.camera.small_frame import FOLLOWING, iou
from refdiff.camera.verdict import PromptKind
from refdiff.contracts.optional import load_cv2
from refdiff.contracts.session import Bool, Float
from refdiff.runtime.refinement import Refinement
from refdiff.runtime.segmentation import mask_box

_LOGIT = 6.0
"""SAM's certainty of a pixel that the followed mask covers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RefinePrompt:
    """What SAM is prompted with on one frame: a point, and box and mask where they are asked for."""

    number: int
    """Number of that frame."""
    mask: Bool
    """[y, x]: the followed mask."""
    box: tuple[int, int, int, int] | None = None
    """x0, y0, x1, y1 in px of the frame, its end excluded."""
    points: tuple[tuple[float, float], ...]
    """(x, y): a place well inside of the mask."""
    logits: Float | None = None
    """[l, l]: the followed mask in SAM's square; None until its side l is known from a first refinement."""

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `Segmenter.refine`."""
        return {"box": self.box, "points": self.points, "mask": self.logits}

    def best_of(self, refinement: Refinement) -> tuple[Bool, float, float]:
        """Return the one of SAM's masks [m, y, x] that is most like the followed one.

        Returns:
            The mask [y, x], its IoU with the followed one, and SAM's own estimate of its IoU with the truth.
        """
        scores = [iou(mask, self.mask) for mask in refinement.masks]
        best = int(np.argmax(scores))
        return np.asarray(refinement.masks[best]), scores[best], float(refinement.predicted_iou[best])


def prompt_of(
    mask: Bool, number: int, kind: PromptKind = "point", logits_side: int | None = None
) -> RefinePrompt | None:
    """Return the prompt of a mask [y, x] on frame `number`; None if the mask is empty."""
    box = mask_box(mask)
    if box is None:
        return None
    point = _innermost(mask)
    if kind == "point":
        return RefinePrompt(number=number, mask=mask, points=(point,))
    logits = None if logits_side is None else _to_logits(mask, logits_side)
    return RefinePrompt(number=number, mask=mask, box=box, points=(point,), logits=logits)


def _innermost(mask: Bool) -> tuple[float, float]:
    """Return the place (x, y) that is farthest from the mask's edge."""
    cv2 = load_cv2(FOLLOWING)
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(distance)), mask.shape)
    return float(x), float(y)


def _to_logits(mask: Bool, side: int) -> Float:
    """Return a mask as logits [l, l] in SAM's square, whose side is the image's longer one."""
    cv2, (height, width) = load_cv2(FOLLOWING), mask.shape
    scale = side / max(height, width)
    size_xy = max(1, round(width * scale)), max(1, round(height * scale))
    covered = cv2.resize(mask.astype(np.float32), size_xy, interpolation=cv2.INTER_AREA)
    logits = np.full((side, side), -_LOGIT, np.float32)
    logits[: size_xy[1], : size_xy[0]] = (2.0 * covered - 1.0) * _LOGIT
    return logits
