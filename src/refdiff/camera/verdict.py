"""What the evidence of a followed mask is worth: `tracked`, `stale` or `lost`, and why.

The thresholds are options; their defaults are measured on moving rendered scenes
(benchmarks/camera_tracking.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from refdiff.camera.frame import State
from refdiff.camera.motion import LEAST_POINTS, Evidence
from refdiff.errors import InputError

Level = Literal["off", "points", "sam", "auto"]
"""How masks are followed: not at all; by points; also by SAM, prompted with the followed mask; or by SAM if
its encoder is fast enough."""

PromptKind = Literal["point", "all"]
"""Whether SAM is prompted with one point inside of the followed mask, or also with its box and the mask."""

LEVELS: tuple[Level, ...] = ("off", "points", "sam", "auto")


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """How masks are followed between key frames, and when they are not trusted any more.

    Of two thresholds of one kind, the first makes a mask stale and the second makes it lost.

    Raises:
        InputError: an unknown level, or a value out of its range.
    """

    level: Level = "auto"
    stale_after_s: float = 4.0
    """Age from which a mask is stale however well it could be followed."""
    lost_after_s: float = 15.0
    stale_inliers: float = 0.5
    """Share of points that were found again and moved together, over the last frames."""
    lost_inliers: float = 0.15
    """The same share in one frame."""
    stale_support: float = 0.65
    """Share of the mask that still looks as in the frame it was found in; the rest is hidden or changed."""
    lost_support: float = 0.25
    least_inside: float = 0.2
    """Share of the mask in the picture below which the target has left it."""
    most_growth: float = 3.0
    """Change of the area, or its inverse, from which a mask is lost; at the square root it is stale."""
    cut: float = 0.6
    """Share of colors that change between two frames, 0..1, from which it is a cut; at half of it, together
    with points that are lost."""
    agree_iou: float = 0.5
    """A key frame's mask with this IoU to the followed one, or more, shows the same target."""
    switch_margin: float = 0.15
    """Lead in confidence, or in score where there is none, by which a different target is taken at once."""
    answers_in_a_row: int = 2
    """Key frames that have to contradict the followed mask in the same way before it is given up."""
    prompt: PromptKind = "point"
    """The followed mask chooses among SAM's three masks, so a point is enough; a SAM that was trained on
    points alone, as the miniature's, does not understand more."""
    refine_iou: float = 0.7
    """SAM's mask replaces the followed one from this IoU on."""
    least_predicted_iou: float = 0.7
    """SAM's own estimate below which its mask is not used."""
    refuse_iou: float = 0.4
    """Below it SAM contradicts the followed mask, which is stale then."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InputError(f"got level {self.level!r}, expected one of {', '.join(LEVELS)}")
        if self.prompt not in ("point", "all"):
            raise InputError(f"got prompt {self.prompt!r}, expected point or all")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("level", "prompt") and not value > 0:
                raise InputError(f"got {each.name} {value!r}, expected a number above 0")


class Verdict(NamedTuple):
    """A state and the reason for it."""

    state: State
    reason: str | None = None


def judge(evidence: Evidence, inliers: float, options: TrackOptions) -> Verdict:
    """Judge one step.

    Args:
        evidence: of the step.
        inliers: mean share of inliers over the last steps.
        options: the thresholds.

    Returns:
        `tracked`, or `stale` or `lost` with a reason.
    """
    growth = max(evidence.area_ratio, 1.0 / max(evidence.area_ratio, 1e-9))
    lost = (
        (evidence.inside < options.least_inside, "it has left the picture"),
        (evidence.points < LEAST_POINTS, f"only {evidence.points} points could be followed"),
        (evidence.inliers < options.lost_inliers, f"only {evidence.inliers:.0%} of its points agree"),
        (evidence.supported < options.lost_support, "it is hidden, or does not look as before"),
        (growth > options.most_growth, f"its area has changed by a factor of {growth:.1f}"),
    )
    stale = (
        (inliers < options.stale_inliers, f"only {inliers:.0%} of its points agree"),
        (evidence.points < 2 * LEAST_POINTS, f"only {evidence.points} points could be followed"),
        (evidence.supported < options.stale_support, "a part of it is hidden, or does not look as before"),
        (growth > options.most_growth**0.5, f"its area has changed by a factor of {growth:.1f}"),
    )
    for state, cases in (("lost", lost), ("stale", stale)):
        for holds, reason in cases:
            if holds:
                return Verdict("lost" if state == "lost" else "stale", reason)
    return Verdict("tracked")
