"""Frames and results of a camera, made up."""

from __future__ import annotations

import numpy as np

from refdiff.camera.frame import Frame, FrameResult, TargetResult


def made_frame(
    number: int = 0, size_yx: tuple[int, int] = (96, 128), *, captured_s: float | None = None
) -> Frame:
    """A frame whose pixels hold its number; the 30th of a second after the one before."""
    at = number / 30 if captured_s is None else captured_s
    pixels = np.full((*size_yx, 3), number % 251, dtype=np.uint8)
    pixels[::8, ::8] = 255
    return Frame(
        source="made", number=number, pixels=pixels, captured_s=at, wall_s=1e9 + at, pts_s=number / 30
    )


def made_result(
    number: int = 0, size_yx: tuple[int, int] = (96, 128), *, state="tracked", events=(), phrase="the red mug"
) -> FrameResult:
    """A frame with one phrase, whose mask is a rectangle."""
    mask = np.zeros(size_yx, dtype=np.bool_)
    mask[10:40, 20:60] = True
    target = TargetResult(
        phrase=phrase,
        version=0,
        state=state,
        mask=None if state in ("searching", "lost") else mask,
        origin=None if state in ("searching", "lost") else "tracked",
        age_s=0.25,
        key_number=max(0, number - 8),
        score=0.5,
        reason="nothing was found" if state == "lost" else None,
        evidence={"inliers": 0.9},
    )
    return FrameResult(frame=made_frame(number, size_yx), targets=(target,), events=events, latency_s=0.01)
