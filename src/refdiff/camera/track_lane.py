"""The track lane: one step for every frame, at the rate of the source.

Each frame is made small, every phrase's mask is followed to it, and answers of the key lane are taken over,
which were found in an earlier frame and are followed to this one. It never waits for a graph, with one
exception: a source that is read as fast as it is worked on, such as a file, is worked on in lockstep. There,
the key frames are at fixed times of the video, and the results do not depend on the machine's speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event
from typing import Protocol

from refdiff.camera.frame import Frame, FrameResult, FrameSource, TargetEvent, TargetResult
from refdiff.camera.key_lane import Job, KeyAnswer, KeyJob, KeyLane, RefineJob
from refdiff.camera.options import CameraOptions, Wishes
from refdiff.camera.small_frame import FrameRing, SmallFrame, shrink
from refdiff.camera.summary import TrackCounts
from refdiff.camera.target import RefinePrompt, Target
from refdiff.runtime.refinement import Refinement
from refdiff.runtime.segmentation import Segmentation

RING_FRAMES = 256
"""Small frames that are kept, at most 80 MB: a key frame may take 8 s at 30 frames/s."""

_READ_S = 0.1
"""Time that a read waits, so that changes and the end are noticed."""

_LOCKSTEP_KEY_S = 1.0
"""Time of the video between two key frames in lockstep, where they are not back to back."""

_LOCKSTEP_LOST_S = 0.25
"""Least time of the video between two key frames in lockstep while a target is lost or stale."""

_ASSUMED_RATE = 30.0
"""Frames/s of a source in lockstep that has no times, such as a folder."""

ROOM_FOR_ENCODER_S = 0.1
"""SAM's encoder runs in the gaps, where it was not asked for by name, if a run takes no longer than this."""


class Followed(Protocol):
    """One phrase's mask over time; `Target` is one."""

    @property
    def wants_key(self) -> bool:
        """Whether the mask needs an answer of the whole pipeline."""
        ...

    def ground(self, answer: Segmentation, key_number: int, ring: FrameRing) -> list[TargetEvent]:
        """Take a key answer, and follow it through the ring to its newest frame."""
        ...

    def advance(self, small: SmallFrame) -> list[TargetEvent]:
        """Follow the mask to a newer frame."""
        ...

    def refine_prompt(self) -> RefinePrompt | None:
        """Return a prompt for SAM on the newest frame, if one is wanted."""
        ...

    def refined(self, refinement: Refinement, number: int, ring: FrameRing) -> list[TargetEvent]:
        """Take SAM's answer, and follow it through the ring to its newest frame."""
        ...

    def result(self, frame: Frame) -> TargetResult:
        """Return what is known at the newest frame."""
        ...


class TrackLane:
    """Follows the masks of all phrases; one thread runs it.

    Args:
        source: read here and nowhere else; not closed.
        key: the lane that answers key frames.
        wishes: what is wanted.
        options: of the run.
        new_target: makes the target of a phrase and its version.
        clock: seconds, monotonic, the one that frames are captured by.
    """

    def __init__(
        self,
        source: FrameSource,
        key: KeyLane,
        wishes: Wishes,
        options: CameraOptions,
        *,
        new_target: Callable[[str, int], Followed] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._key = key
        self._wishes = wishes
        self._options = options
        self._clock = clock
        self._new_target = new_target or (lambda text, version: Target(text, options.track, version))
        self._ring = FrameRing(RING_FRAMES)
        self._wanted = wishes.wanted
        self._versions: dict[int, int] = dict.fromkeys(range(len(self._wanted.phrases)), 0)
        self._targets: list[tuple[str, Followed]] = [
            (each, self._new_target(each, 0)) for each in self._wanted.phrases
        ]
        self._answers: dict[tuple[int, type], KeyAnswer] = {}
        self._job: KeyJob | None = None
        self._refine: RefineJob | None = None
        self._key_asked_s = float("-inf")
        """Time of the frame of the last key job."""
        self._offered_s = 0.0
        """Time when that was offered."""
        self._last = -1
        self._pending: list[TargetEvent] = []
        self.lockstep = not source.live
        self.counts = TrackCounts()

    def run(self, put: Callable[[FrameResult], None], stopped: Event) -> None:
        """Work until the source ends, or `stopped` is set.

        Raises:
            SourceError: the source could not be opened, or is lost for good.
            RefdiffError: the key lane has failed.
        """
        while not stopped.is_set():
            self._key.check()
            self._follow_wishes()
            if self._wanted.paused and self.lockstep:
                stopped.wait(_READ_S)
                continue
            if not self.lockstep:  # between two frames, where following an answer delays neither
                self._pending += self._take_answers()
            frame = self._source.read(_READ_S)
            if frame is not None:
                self._take_frame(frame, put, stopped)
            elif self._source.ended:
                return

    def _take_frame(self, frame: Frame, put: Callable[[FrameResult], None], stopped: Event) -> None:
        self._follow_wishes()
        if frame.number <= self._last:
            self._count_dropped("repeated")
            return
        self._last = frame.number
        if self._wanted.paused:
            self._count_dropped("paused")
            return
        timed = replace(frame, captured_s=self._video_s(frame)) if self.lockstep else frame
        events, self._pending = [*self._pending, *self._step(timed, stopped)], []
        found = tuple(target.result(timed) for _, target in self._targets)
        delay_s = max(0.0, self._clock() - frame.captured_s)
        self.counts.note(frame, found, delay_s, self._clock())
        put(FrameResult(frame=frame, targets=found, events=tuple(events), latency_s=delay_s))

    def _step(self, frame: Frame, stopped: Event) -> list[TargetEvent]:
        events: list[TargetEvent] = []
        small = shrink(frame)
        self._ring.append(small)
        if not self.lockstep:
            self._offer_key(frame)
        for _, target in self._targets:
            events += target.advance(small)
        if self.lockstep:
            self._offer_key(frame)
            self._wait_for(self._job, stopped)
            events += self._take_answers()
        self._offer(frame)
        if self.lockstep:
            self._wait_for(self._refine, stopped)
            events += self._take_answers()
        return events

    def _take_answers(self) -> list[TargetEvent]:
        """Take over answers that have come; those of a phrase that was changed since are dropped.

        Of a live source one after each frame, the newest of its kind and phrase: following it to this frame
        takes time that the next frame may have to wait.
        """
        for answer in self._key.take():
            self._answers[id(answer.owner), type(answer.found)] = answer
        events: list[TargetEvent] = []
        while self._answers:
            answer = self._answers.pop(next(iter(self._answers)))
            named = [(phrase, target) for phrase, target in self._targets if target is answer.owner]
            if named:
                events += self._take(answer, *named[0])
            if named and not self.lockstep:
                break
        return events

    def _take(self, answer: KeyAnswer, phrase: str, target: Followed) -> list[TargetEvent]:
        number = answer.frame.number
        if isinstance(answer.found, Segmentation):
            self.counts.key_delay.add(self._delay_of(answer))
            return target.ground(answer.found, number, self._ring)
        if isinstance(answer.found, Refinement):
            return target.refined(answer.found, number, self._ring)
        return [TargetEvent(kind="failed", phrase=phrase, frame=number, reason=str(answer.error))]

    def _delay_of(self, answer: KeyAnswer) -> float:
        """Return the time from the frame's capture to the answer.

        In lockstep, where frames have the video's times, it is the time of the job.
        """
        return max(0.0, answer.at_s - (self._offered_s if self.lockstep else answer.frame.captured_s))

    def _offer_key(self, frame: Frame) -> None:
        if not self._targets or not self._key_due(frame.captured_s):
            return
        self._wishes.key_asked.clear()
        self._key_asked_s, self._offered_s = frame.captured_s, self._clock()
        self._job = KeyJob(
            frame=frame,
            phrases=tuple(phrase for phrase, _ in self._targets),
            owners=tuple(target for _, target in self._targets),
            options=self._wanted.run,
        )
        self._key.offer(self._job)

    def _key_due(self, now_s: float) -> bool:
        key, since_s = self._options.key, now_s - self._key_asked_s
        if key == "auto" and not self.lockstep:
            return True  # the newest frame waits in the slot until the lane is free
        if self._job is not None and not self._job.finished.is_set():
            return False
        if self._wishes.key_asked.is_set():
            return True
        if any(target.wants_key for _, target in self._targets):
            return since_s >= (_LOCKSTEP_LOST_S if self.lockstep else 0.0)
        every_s = {"auto": _LOCKSTEP_KEY_S, "change": float("inf")}.get(str(key), key)
        return since_s >= float(every_s)

    def _offer(self, frame: Frame) -> None:
        if self._refine is not None and not self._refine.finished.is_set():
            return
        if not self._has_room_for_encoder():
            return
        asked = [(target, prompt) for _, target in self._targets if (prompt := target.refine_prompt())]
        if not asked:
            return
        self._refine = RefineJob(
            frame=frame,
            prompts=tuple(prompt for _, prompt in asked),
            owners=tuple(target for target, _ in asked),
            options=self._wanted.run,
        )
        self._key.offer(self._refine)

    def _has_room_for_encoder(self) -> bool:
        """Say whether SAM's encoder runs between key frames: asked for by name, or measured to be fast.

        In lockstep it has to be asked for: results must not depend on how fast it is.
        """
        level, seconds = self._options.track.level, self._key.encoder_s
        if level == "auto" and not self.lockstep:
            return seconds is not None and seconds <= ROOM_FOR_ENCODER_S
        return level == "sam"

    def _wait_for(self, job: Job | None, stopped: Event) -> None:
        while job is not None and not stopped.is_set() and not job.finished.wait(_READ_S):
            self._key.check()

    def _follow_wishes(self) -> None:
        """Take over what a caller has changed since the last frame."""
        wanted, before = self._wishes.wanted, self._wanted
        if wanted is before:
            return
        self._wanted = wanted
        self._key.cancel()
        self._key_asked_s = float("-inf")
        if wanted.phrases != before.phrases:
            self._replace_phrases(wanted.phrases)
        if before.paused and not wanted.paused:  # nothing is known about the time in between
            self._ring = FrameRing(RING_FRAMES)
            self._targets = [
                (phrase, self._new_target(phrase, self._versions[at]))
                for at, (phrase, _) in enumerate(self._targets)
            ]

    def _replace_phrases(self, phrases: Sequence[str]) -> None:
        """Keep the targets of phrases that stay, and start the others from nothing."""
        kept, targets = dict(self._targets), []
        before = [phrase for phrase, _ in self._targets]
        for at, phrase in enumerate(phrases):
            if before[at : at + 1] != [phrase]:
                self._versions[at] = self._versions.get(at, -1) + 1
            if phrase not in kept:
                reason = f"replaces {before[at]!r}" if at < len(before) else "is new"
                self._pending.append(
                    TargetEvent(kind="phrase", phrase=phrase, frame=self._last, reason=reason)
                )
            targets.append((phrase, kept.get(phrase) or self._new_target(phrase, self._versions[at])))
        self._targets = targets

    def _video_s(self, frame: Frame) -> float:
        return frame.number / _ASSUMED_RATE if frame.pts_s is None else frame.pts_s

    def _count_dropped(self, cause: str) -> None:
        self.counts.dropped[cause] = self.counts.dropped.get(cause, 0) + 1
