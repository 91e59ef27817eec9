"""Small gray frames, and a ring of the last ones: what masks are followed through and compared by.

In: frames of a source. Out: `SmallFrame`s, which are 20 times smaller than the frames of a full-HD camera.

Axes: y/x = image rows/columns, of the small frame unless stated.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.camera.frame import Frame
from refdiff.contracts.optional import load_cv2
from refdiff.contracts.session import Bool, Float
from refdiff.errors import InputError

LONGER_SIDE = 640
"""Longest side of a small frame in px; a smaller frame keeps its size."""
FOLLOWING = "following masks"
"""What OpenCV is needed for."""

_BINS = 8
_SAMPLE_STEP = 4
"""Every 4th row and column of the small frame is counted in the histogram."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SmallFrame:
    """What following a mask needs of a frame."""

    number: int
    captured_s: float
    grey: NDArray[np.uint8] = field(repr=False)
    """[y, x]."""
    scale: float
    """Px of the frame for each px of the small frame, 1 or more."""
    size_yx: tuple[int, int]
    """Size of the frame, not of the small one."""
    histogram: Float = field(repr=False)
    """[512]: shares of 8 x 8 x 8 colors, sum 1."""


def shrink(frame: Frame) -> SmallFrame:
    """Make the small frame of a frame.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = load_cv2(FOLLOWING)
    height, width = frame.size_yx
    scale = max(1.0, max(height, width) / LONGER_SIDE)
    pixels: Any = frame.pixels
    if scale > 1.0:
        size_xy = max(1, round(width / scale)), max(1, round(height / scale))
        pixels = cv2.resize(pixels, size_xy, interpolation=cv2.INTER_AREA)
    sample = np.ascontiguousarray(pixels[::_SAMPLE_STEP, ::_SAMPLE_STEP])
    counts = cv2.calcHist([sample], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3).reshape(-1)
    return SmallFrame(
        number=frame.number,
        captured_s=frame.captured_s,
        grey=cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY),
        scale=scale,
        size_yx=(height, width),
        histogram=counts / max(1.0, float(counts.sum())),
    )


def scene_change(before: SmallFrame, after: SmallFrame) -> float:
    """Return the share of colors that two frames do not have in common, 0..1; 1 if their sizes differ."""
    if before.size_yx != after.size_yx:
        return 1.0
    return 1.0 - float(np.minimum(before.histogram, after.histogram).sum())


class FrameRing:
    """The last small frames, oldest first. Threads may append and read at the same time.

    Args:
        capacity: most frames that are kept; a frame of 640x480 px takes 0.3 MB. It has to cover the time that
            a key frame takes: 128 frames are 4 s at 30 frames per second.

    Raises:
        InputError: the capacity is below 2.
    """

    def __init__(self, capacity: int = 128) -> None:
        if capacity < 2:
            raise InputError(f"got a ring of {capacity} frames, expected 2 or more")
        self._frames: deque[SmallFrame] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    def append(self, small: SmallFrame) -> None:
        """Add a frame that is newer than all others; the oldest is dropped where the ring is full."""
        with self._lock:
            self._frames.append(small)

    def since(self, number: int) -> list[SmallFrame]:
        """Return the frame of a number and all newer ones; nothing if that frame is not here (any more)."""
        with self._lock:
            frames = list(self._frames)
        for place in range(len(frames) - 1, -1, -1):
            if frames[place].number == number:
                return frames[place:]
        return []

    @property
    def newest(self) -> SmallFrame | None:
        """The frame that was appended last."""
        with self._lock:
            return self._frames[-1] if self._frames else None


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
    cv2 = load_cv2(FOLLOWING)
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
