"""Compare what is under a mask with what was under it, and masks with each other.

Axes: y/x = rows/columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refdiff.camera.small_frame import load_cv2
from refdiff.contracts.session import Bool

_DIFFERS = 26.0
"""Difference of brightness, of 255, from which a pixel shows something else than the mask's own frame."""
_UNRELATED = 0.5
"""Squared difference relative to the variance of both, from which two textures are different ones."""
_NOISE_FLOOR = 80.0
"""Squared difference that noise and a shift of less than a pixel may cause."""
_BLUR_PX = 9


def iou(one: Bool, other: Bool) -> float:
    """Return the intersection over union of two masks, 0..1; 0 if both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0


def differing_pixels(then: NDArray[np.uint8], now: NDArray[np.uint8], mask: Bool) -> Bool:
    """Return the pixels [y, x] that look different, up to a change of the light on the whole object.

    Even surfaces are compared by brightness. Textures are compared by their squared difference, which is the
    sum of their variances where they have nothing to do with each other.
    """
    cv2 = load_cv2()
    difference = now.astype(np.float32) - then
    light = float(np.clip(np.median(difference[mask]), -_DIFFERS, _DIFFERS))
    difference -= light
    square = (_BLUR_PX, _BLUR_PX)
    error = cv2.blur(difference * difference, square)
    variance = sum(
        cv2.blur(each * each, square) - cv2.blur(each, square) ** 2
        for each in (then.astype(np.float32), now.astype(np.float32))
    )
    differs = cv2.blur(np.abs(difference), square) > _DIFFERS
    differs |= error > _UNRELATED * variance + _NOISE_FLOOR
    opened = cv2.morphologyEx(differs.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return np.asarray(opened > 0)
