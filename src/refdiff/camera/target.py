"""The mask of one phrase over time: where it is now, and how far it can be trusted.

In: answers of key frames, which are late, refinements, and every small frame. Out: what is known at the
newest frame. An answer is followed from its own frame to the newest one before anything is done with it; one
that cannot be followed is not shown, so no mask is ever older than the frame it is drawn on. `Identity`
decides whether an answer shows the target or something else.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from refdiff.camera.frame import Frame, MaskOrigin, State, TargetEvent, TargetResult
from refdiff.camera.motion import MaskMotion
from refdiff.camera.sam_prompt import RefinePrompt, prompt_of
from refdiff.camera.small_frame import FrameRing, SmallFrame, iou, scene_change
from refdiff.camera.verdict import Identity, TrackOptions, Verdict, judge
from refdiff.runtime.refinement import Refinement
from refdiff.runtime.segmentation import Segmentation

__all__ = ["RefinePrompt", "Target", "TrackOptions"]

_RETRIES = 10
"""Frames in which a mask that could not be followed may be found again, from where it was last."""
_SMOOTHING = 0.4
"""Weight of the newest step in the mean share of inliers."""


class Target:
    """One phrase's mask over time; one thread owns it.

    Args:
        phrase: what the mask is of.
        options: see `TrackOptions`.
        version: counts the changes of this phrase.
    """

    def __init__(self, phrase: str, options: TrackOptions | None = None, version: int = 0) -> None:
        self.phrase, self.version = phrase, version
        self._options = options or TrackOptions()
        self._identity = Identity(self._options)
        self._newest: SmallFrame | None = None
        self._motion: MaskMotion | None = None
        self._verdict = Verdict("searching", "no key frame has been answered yet")
        self._key: tuple[Segmentation, SmallFrame] | None = None
        self._origin: MaskOrigin = "grounded"
        self._doubt: str | None = None
        self._inliers, self._failed, self._change = 1.0, 0, 0.0
        self._asked: RefinePrompt | None = None
        self._sam_iou: float | None = None
        self._logits_side: int | None = None

    @property
    def state(self) -> State:
        """The state at the newest frame."""
        return self._verdict.state

    @property
    def wants_key(self) -> bool:
        """Whether there is no mask that can be trusted, so that a key frame is urgent."""
        return self._verdict.state in ("searching", "stale", "lost")

    @property
    def _live(self) -> bool:
        return self._motion is not None and self._verdict.state in ("seen", "tracked", "stale")

    def ground(self, answer: Segmentation, key_number: int, ring: FrameRing) -> list[TargetEvent]:
        """Take a key answer for frame `key_number`, followed through the ring to its newest frame."""
        events = self._catch_up(ring)
        frames = ring.since(key_number)
        if not frames:
            reason = f"the answer for frame {key_number} came when that frame was no longer kept"
            return events + self._unusable(reason)
        if answer.index is None or not answer.mask.any():
            return events + self._miss(f"no mask: {answer.reason or 'it is empty'}")
        if answer.mask.shape != frames[0].size_yx:
            return events + self._unusable("the answer is for a frame of another size")
        found, why = self._forward(MaskMotion(frames[0], answer.mask), frames)
        if found is None:
            return events + self._unusable(f"the answer for frame {key_number} could not be followed: {why}")
        return events + self._weigh(answer, found, frames[0], ring)

    def advance(self, small: SmallFrame) -> list[TargetEvent]:
        """Follow the mask to a newer frame; a frame that is not newer changes nothing."""
        before = self._newest
        if before is not None and small.number <= before.number:
            return []
        self._newest = small
        self._change = scene_change(before, small) if before is not None else 0.0
        if self._motion is None:
            return []
        if self._options.level == "off":
            return self._lose("masks are not followed from frame to frame (level off)")
        if not self._motion.step(small):
            return self._fail_step()
        if self._change > self._options.cut:
            return self._lose("the scene has changed at once", kind="cut")
        was_lost = self._verdict.state == "lost"
        inliers = self._motion.evidence.inliers
        self._inliers = inliers if was_lost else _blend(self._inliers, inliers)
        verdict = judge(self._motion.evidence, self._inliers, self._options)
        if verdict.state == "lost" or (was_lost and verdict.state != "tracked"):
            return self._fail_step(verdict.reason)
        self._failed = 0
        return self._settle()

    def refine_prompt(self) -> RefinePrompt | None:
        """Return a prompt for SAM on the newest frame, if the level wants one and there is a mask."""
        if self._options.level not in ("sam", "auto") or not self._live or self._motion is None:
            return None
        number = self._motion.newest.number
        mask = self._motion.full_mask()
        self._asked = prompt_of(mask, number, self._options.prompt, self._logits_side)
        return self._asked

    def refined(self, refinement: Refinement, number: int, ring: FrameRing) -> list[TargetEvent]:
        """Take SAM's answer to the prompt for frame `number`: it replaces the followed mask if it agrees."""
        events = self._catch_up(ring)
        self._logits_side = refinement.low_res.shape[-1]
        asked, frames = self._asked, ring.since(number)
        if asked is None or asked.number != number or not frames or not self._live:
            return events
        best, agrees, predicted = asked.best_of(refinement)
        if predicted < self._options.least_predicted_iou:  # SAM does not know: no evidence
            return events
        self._sam_iou = agrees
        if self._sam_iou < self._options.refine_iou:
            return events + self._settle()
        found, _ = self._forward(MaskMotion(frames[0], best), frames)
        if found is not None and self._motion is not None:
            same = iou(found.visible(), self._motion.visible()) >= self._options.agree_iou
            if same and self._identity.has_plausible_area(found):
                self._motion, self._inliers, self._origin = found, 1.0, "refined"
        return events + self._settle()

    def result(self, frame: Frame) -> TargetResult:
        """Return what is known at the newest frame; for any other frame there is no mask."""
        known = TargetResult(
            phrase=self.phrase, version=self.version, state=self._verdict.state, reason=self._verdict.reason
        )
        if self._newest is None or frame.number != self._newest.number:
            state: State = "searching" if self._verdict.state == "searching" else "lost"
            return replace(known, state=state, reason="no mask was followed to this frame")
        evidence = self._evidence()
        mask = self._motion.full_mask() if self._live and self._motion is not None else None
        if mask is None or self._key is None or self._motion is None:
            return replace(known, evidence=evidence)
        answer, key = self._key
        own = self._motion.own.number == frame.number
        return replace(
            known,
            mask=mask,
            origin=self._origin if own else "tracked",
            age_s=max(0.0, frame.captured_s - key.captured_s),
            key_number=key.number,
            confidence=answer.confidence,
            score=float(answer.score),
            cautions=answer.cautions,
            evidence=evidence,
        )

    def _evidence(self) -> dict[str, float]:
        evidence = {"scene_change": self._change}
        if self._motion is not None:
            seen = self._motion.evidence
            evidence |= {
                "inliers": self._inliers,
                "area_ratio": seen.area_ratio,
                "forward_backward_px": seen.forward_backward_px,
                "supported": seen.supported,
            }
        if self._sam_iou is not None:
            evidence["sam_iou"] = self._sam_iou
        return evidence

    def _catch_up(self, ring: FrameRing) -> list[TargetEvent]:
        """Advance to the ring's newest frame, if the caller has not done so."""
        newest = ring.newest
        if newest is None or (self._newest is not None and newest.number <= self._newest.number):
            return []
        between = ring.since(self._newest.number)[1:] if self._newest is not None else []
        return [event for small in between or [newest] for event in self.advance(small)]

    def _forward(
        self, motion: MaskMotion, frames: Sequence[SmallFrame]
    ) -> tuple[MaskMotion | None, str | None]:
        """Follow a mask from the first frame to the last, by every second where that is enough.

        Returns:
            The mask at the last frame, or None and the reason.
        """
        place, last = 0, len(frames) - 1
        if last and self._options.level == "off":
            return None, "masks are not followed from frame to frame (level off)"
        while place < last:
            strides = [stride for stride in (2, 1, 3) if place + stride <= last]
            taken = next((stride for stride in strides if motion.step(frames[place + stride])), None)
            change = scene_change(frames[place], frames[place + (taken or 1)])
            if change > self._options.cut * (1.0 if taken else 0.5):
                return None, "the scene has changed since"
            verdict = judge(motion.evidence, 1.0, self._options)
            if taken is None or verdict.state == "lost":
                return None, verdict.reason
            place += taken
        return motion, None

    def _weigh(
        self, answer: Segmentation, found: MaskMotion, key: SmallFrame, ring: FrameRing
    ) -> list[TargetEvent]:
        """Take an answer that shows the target, or hold one that shows something else."""
        followed = self._motion if self._live else None
        kind, reason = self._identity.weigh(
            answer, found, followed, lambda *each: self._forward(*each)[0], ring
        )
        if kind == "held":
            self._doubt = reason
            if followed is not None:
                return self._settle()
            self._verdict = Verdict("lost", reason)
            return []
        was_live = followed is not None
        self._motion, self._key, self._origin, self._doubt = found, (answer, key), "grounded", None
        self._inliers, self._failed, self._sam_iou, self._asked = found.evidence.inliers, 0, None, None
        events = [self._event("switched", reason)] if kind == "switched" else []
        if not was_live:
            events.append(self._event("found", reason))
            self._verdict = Verdict("tracked")
        return events + self._settle()

    def _miss(self, reason: str) -> list[TargetEvent]:
        """Take an answer without a mask; the first one in a row makes a live mask stale."""
        misses = self._identity.miss()
        if not self._live:
            self._motion = None
            self._verdict = Verdict("lost", reason)
            return []
        if misses >= self._options.answers_in_a_row:
            return self._lose(reason)
        self._doubt = f"the last key frame has {reason}"
        return self._settle()

    def _unusable(self, reason: str) -> list[TargetEvent]:
        """Leave out an answer that says nothing about the newest frame."""
        if not self._live:
            self._verdict = Verdict("lost", reason)
        return [self._event("failed", reason)]

    def _fail_step(self, reason: str | None = None) -> list[TargetEvent]:
        """Show no mask at this frame; try again from where it was last, for a few frames."""
        self._failed += 1
        if self._change > self._options.cut / 2:
            return self._lose("the scene has changed at once", kind="cut")
        if self._motion is not None and reason is None:
            reason = judge(self._motion.evidence, self._inliers, self._options).reason
        was_live, kept = self._live, self._motion
        events = self._lose(reason or "it could not be followed") if was_live else []
        self._motion = kept if self._failed <= _RETRIES else None
        return events

    def _lose(self, reason: str, kind: Any = "lost") -> list[TargetEvent]:
        was_live = self._live
        self._motion, self._doubt, self._sam_iou = None, None, None
        self._verdict = Verdict("lost", reason)
        if kind == "cut":
            self._identity.forget_challenger()
        return [self._event(kind, reason)] if was_live else []

    def _settle(self) -> list[TargetEvent]:
        """Set the state of a mask that is at the newest frame."""
        if self._motion is None or self._key is None or self._newest is None:
            return []
        before = self._verdict.state
        age_s = self._newest.captured_s - self._key[1].captured_s
        if age_s > self._options.lost_after_s:
            return self._lose(f"its key frame is {age_s:.1f} s old")
        own = self._origin == "grounded" and self._motion.own.number == self._newest.number
        self._verdict = Verdict("seen") if own else judge(self._motion.evidence, self._inliers, self._options)
        doubts = (
            self._doubt,
            f"its key frame is {age_s:.1f} s old" if age_s > self._options.stale_after_s else None,
            "SAM finds something else at its place"
            if self._sam_iou is not None and self._sam_iou < self._options.refuse_iou
            else None,
        )
        doubt = next((each for each in doubts if each), None)
        if doubt is not None and self._verdict.state in ("seen", "tracked"):
            self._verdict = Verdict("stale", doubt)
        if before == "lost":
            return [self._event("found", "its points were found again")]
        became_stale = self._verdict.state == "stale" and before in ("seen", "tracked")
        return [self._event("stale", self._verdict.reason or "")] if became_stale else []

    def _event(self, kind: Any, reason: str | None) -> TargetEvent:
        number = self._newest.number if self._newest is not None else -1
        return TargetEvent(kind=kind, phrase=self.phrase, frame=number, reason=reason or "")


def _blend(mean: float, newest: float) -> float:
    return mean + _SMOOTHING * (newest - mean)
