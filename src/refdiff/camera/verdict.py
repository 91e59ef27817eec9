"""Verdicts on a target: what a followed mask is worth, and whether an answer shows the same thing.

A mask is `tracked`, `stale` or `lost`. A model that answers each frame by itself would jump between two
things that fit the phrase almost equally well. An answer of a key frame that disagrees with what is known is
therefore held as a challenger: it is taken if it leads by a margin, or if the next answer shows the same
thing again.

The thresholds are options; their defaults are measured on moving rendered scenes
(benchmarks/camera_tracking.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np

from refdiff.camera.frame import State
from refdiff.camera.motion import LEAST_POINTS, Evidence, MaskMotion
from refdiff.camera.small_frame import FOLLOWING, FrameRing, SmallFrame, iou
from refdiff.contracts.optional import load_cv2
from refdiff.contracts.session import Float
from refdiff.errors import InputError
from refdiff.runtime.segmentation import Segmentation

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


Decision = Literal["refreshed", "found", "switched", "held"]

Forward = Callable[[MaskMotion, Sequence[SmallFrame]], MaskMotion | None]
"""Follows a mask through frames to the last one; None if that is not possible."""

_SAME_LOOK = 0.5
"""Share of colors that a target that was lost has to share with what is found for it."""
_FOUND_MARGINS = 3.0
"""Margins by which an answer of the same colors may be weaker than the ones before: a target that is half
hidden is found with less confidence."""
_BLEND = 0.5
"""Weight of the newest answer in what is remembered."""
_PLAUSIBLE_AREA = 0.4, 2.5
"""Area of a refined mask relative to that of the last key frame."""


class Identity:
    """What is remembered of a target: how strong its answers were, its colors and its size.

    Args:
        options: see `TrackOptions`.
    """

    def __init__(self, options: TrackOptions) -> None:
        self._options = options
        self._strength: float | None = None
        self._look: Float | None = None
        self._area: float | None = None
        self._challenger: MaskMotion | None = None
        self._challenges = self._misses = 0

    def forget_challenger(self) -> None:
        """Let the next disagreeing answer be the first one, as after a cut."""
        self._challenger, self._challenges = None, 0

    def miss(self) -> int:
        """Note an answer without a mask; return how many there have been in a row."""
        self.forget_challenger()
        self._misses += 1
        return self._misses

    def has_plausible_area(self, found: MaskMotion) -> bool:
        """Return whether a refined mask is about as large as the last key frame's was."""
        low, high = _PLAUSIBLE_AREA
        return self._area is None or bool(low < np.count_nonzero(found.visible()) / self._area < high)

    def weigh(
        self,
        answer: Segmentation,
        found: MaskMotion,
        followed: MaskMotion | None,
        forward: Forward,
        ring: FrameRing,
    ) -> tuple[Decision, str]:
        """Decide about an answer.

        Args:
            answer: of a key frame, with a mask.
            found: its mask at the newest frame.
            followed: the target's mask at the newest frame; None if it is lost.
            forward: follows the challenger to the newest frame.
            ring: the frames for that.

        Returns:
            The decision and the reason: `refreshed` is the same target, `held` is not taken.
        """
        self._misses = 0
        strength = float(answer.score if answer.confidence is None else answer.confidence)
        look = _look_of(answer)
        if followed is not None and iou(found.visible(), followed.visible()) >= self._options.agree_iou:
            return self._take(found, strength, look, "refreshed", "a key frame has the same mask", _BLEND)
        decision: Decision = "found" if followed is None else "switched"
        if self._is_clear(strength, look, known=followed is not None):
            reason = (
                "a key frame has it" if followed is None else "a key frame prefers another mask by a margin"
            )
            return self._take(found, strength, look, decision, reason, 1.0)
        if self._is_challenged_again(found, forward, ring):
            count = self._options.answers_in_a_row
            return self._take(found, strength, look, decision, f"{count} key frames in a row have it", 1.0)
        if followed is None:
            return "held", "a key frame has a mask, but it may be something else; the next one decides"
        return "held", "the last key frame has another mask"

    def _is_clear(self, strength: float, look: Float | None, *, known: bool) -> bool:
        """Return whether an answer that does not overlap the target can be taken at once."""
        if self._strength is None:
            return True
        margin = self._options.switch_margin
        if known:
            return strength >= self._strength + margin
        if self._look is None or look is None:
            return strength >= self._strength - margin
        shared = float(np.minimum(self._look, look).sum())
        return shared >= _SAME_LOOK and strength >= self._strength - _FOUND_MARGINS * margin

    def _is_challenged_again(self, found: MaskMotion, forward: Forward, ring: FrameRing) -> bool:
        """Note a challenger; return whether enough answers in a row have shown it."""
        earlier, self._challenger = self._challenger, found
        frames = ring.since(earlier.newest.number) if earlier is not None else []
        again = forward(earlier, frames) if earlier is not None and frames else None
        agrees = again is not None and iou(again.visible(), found.visible()) >= self._options.agree_iou
        self._challenges = self._challenges + 1 if agrees else 1
        return self._challenges >= self._options.answers_in_a_row

    def _take(
        self,
        found: MaskMotion,
        strength: float,
        look: Float | None,
        decision: Decision,
        reason: str,
        weight: float,
    ) -> tuple[Decision, str]:
        self.forget_challenger()
        known, seen = self._strength, self._look
        self._strength = strength if known is None else known + weight * (strength - known)
        self._look = look if seen is None or look is None else seen + np.float32(weight) * (look - seen)
        self._area = max(1.0, float(np.count_nonzero(found.visible())))
        return decision, reason


def _look_of(answer: Segmentation) -> Float | None:
    """Return the shares [512] of 8 x 8 x 8 colors under the mask; None without an image."""
    if answer.image is None:
        return None
    mask = answer.mask.astype(np.uint8)
    counts = load_cv2(FOLLOWING).calcHist(
        [np.ascontiguousarray(answer.image)], [0, 1, 2], mask, [8] * 3, [0, 256] * 3
    )
    return np.asarray(counts.reshape(-1) / max(1.0, float(counts.sum())), np.float32)
