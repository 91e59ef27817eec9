"""What is known about every phrase at one frame.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from refdiff.camera.frame import Frame
from refdiff.contracts.session import Bool

State = Literal["searching", "seen", "tracked", "stale", "lost"]
"""How far a mask can be trusted (docs/camera.md):

searching: no key frame has been answered yet. seen: the mask was found in this very frame. tracked: it was
found in an earlier frame and followed to this one. stale: it was followed for too long, or the evidence that
it is still right is weak. lost: there is no mask.
"""

MaskOrigin = Literal["grounded", "tracked", "refined"]
"""What made the mask: the whole pipeline on this frame, points followed to it, or SAM on this frame, prompted
with the followed mask."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetResult:
    """What is known about one phrase at one frame. The mask is one of this frame, never of an older one."""

    phrase: str
    version: int
    """Counts the changes of this phrase while running; answers to an earlier phrase are never shown."""
    state: State
    mask: Bool | None = field(default=None, repr=False)
    """[y, x] of the frame; None where there is none."""
    origin: MaskOrigin | None = None
    """None without a mask."""
    age_s: float | None = None
    """Time from the capture of the key frame that the mask was found in to that of this frame; None without
    a mask."""
    key_number: int | None = None
    """Number of that key frame."""
    confidence: float | None = None
    """Of the key frame's answer, 0..1; None until one is calibrated."""
    score: float | None = None
    """Of the key frame's answer."""
    reason: str | None = None
    """Reason why there is no mask, or why it is stale."""
    cautions: tuple[str, ...] = ()
    """Of the key frame's answer: why the mask may be wrong."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """What the state was decided by: `inliers` (share of followed points, 0..1), `area_ratio`,
    `forward_backward_px`, `sam_iou`, `scene_change`."""


@dataclass(frozen=True, kw_only=True)
class TargetEvent:
    """A change of one phrase's target."""

    kind: Literal["found", "lost", "switched", "stale", "cut", "phrase", "failed"]
    phrase: str
    frame: int
    """Number of the frame."""
    reason: str
    """One line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameResult:
    """One frame with what is known about every phrase, in the order of the phrases."""

    frame: Frame
    targets: tuple[TargetResult, ...]
    events: tuple[TargetEvent, ...] = ()
    """Since the last result."""
    latency_s: float = 0.0
    """Time from the frame's capture until this result was ready."""
