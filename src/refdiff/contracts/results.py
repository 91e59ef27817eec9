"""The values that an answer is chosen from; the runtime and the reference make the same ones.

Axes: n = candidates, y/x = image rows/columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Bool, Float


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The masks a phrase chooses from, best predicted IoU first."""

    masks: Bool
    """[n, y, x]."""
    predicted_iou: Float
    """[n], 0..1; level sets of mode `gen` carry 1."""
    areas_px: NDArray[np.int64]
    """[n]."""
    boxes_xyxy_px: NDArray[np.int64]
    """[n, 4], inclusive corners: a one-pixel mask has x0 == x1."""
    kept: Bool
    """[n], False for masks that the area filter of METHOD §2 removed."""

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The parts of the fused score, each [n] and unweighted; a part the mode does not use is all zero."""

    hard: Float
    """Cosine of the text with the candidate's crop (METHOD §5)."""
    soft: Float
    """Cosine of the text with the image, under soft masked attention (METHOD §6)."""
    generative: Float
    """Mean heat inside the mask minus mean heat outside (METHOD §7)."""
    place: Float
    """Fit to the place that the phrase names (METHOD §10.4, §10.5)."""
    total: Float
    """The score that decides, after weights and filter; -inf for a candidate that cannot win."""
