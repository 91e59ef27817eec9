"""Measure how well masks follow moving objects while key frames are late; the record is camera-tracking.json.

    python -m benchmarks.camera_tracking --piece 0:5    # repeat for the other clips; it keeps pieces
    python -m benchmarks.camera_tracking --join         # writes the record

Clips are rendered scenes of 640 x 480 px at 30 frames per second (`refdiff.data.moving_scenes`), with seeds
that nothing was tuned on. Time is simulated: the answer for the newest frame comes a fixed time of the video
later, and the next key frame begins then, so the results do not depend on the machine. Every frame of every
method is compared with the truth.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import refdiff
from benchmarks.records import RESULTS, add_entry
from refdiff.camera.frame import Frame
from refdiff.camera.small_frame import FrameRing, SmallFrame, iou, shrink
from refdiff.camera.target import Target
from refdiff.camera.verdict import TrackOptions
from refdiff.contracts.options import RunOptions
from refdiff.contracts.session import Bool
from refdiff.data.moving_scenes import Motion, MovingScene
from refdiff.miniature.scenes import ReferringPhrase
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.segmentation import Segmentation

RECORD = RESULTS / "camera-tracking.json"
PIECES = Path("/tmp/refdiff-camera-tracking")  # noqa: S108 - pieces of one run on one machine
FIRST_SEED = 7_000_000
"""First seed of the clips that are measured; what was tuned, was tuned on seeds below 1,000."""
CLIPS = 20
DELAYS_S = (0.25, 1.0, 2.0)
MIN_CONFIDENCE = 0.25
"""Below it a key frame has no mask, as with `--min-confidence`."""
LEAST_VISIBLE_PX = 400
"""A target with fewer visible pixels is neither present nor absent, and its frames are not counted."""
REFINE_EVERY, REFINE_DELAY = 10, 3
"""Frames between two prompts of the level `sam`, and until its answer."""

_REMAP: Any = cv2.remap  # its types demand a second map, which a map of both has not

Answer = Callable[[int], Segmentation]


def clips(motion: Motion, first: int = FIRST_SEED) -> Iterator[tuple[MovingScene, ReferringPhrase]]:
    """Yield clips with a phrase of kind and color; seeds without one are skipped."""
    for seed in count(first):
        scene = MovingScene(seed, motion)
        named = [phrase for phrase in scene.phrases if phrase.cues == {"kind", "colour"}]
        if named:
            yield scene, named[seed % len(named)]


@dataclass
class Tally:
    """Counts and sums of one method at one delay."""

    ious: list[float] = field(default_factory=list)
    """Of every frame with a visible target, once a key frame since the last cut has been answered; 0 without
    a mask."""
    shown: list[float] = field(default_factory=list)
    """Of those with a mask."""
    trusted: list[float] = field(default_factory=list)
    """Of those that are seen or tracked."""
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def note(self, mask: Bool | None, masks: Bool, target: int, state: str, *, answered: bool = True) -> None:
        """Compare one frame; `answered` says whether a key frame since the last cut has been."""
        truth = masks[target]
        area = int(np.count_nonzero(truth))
        self.counts["frames"] += 1
        self.counts[f"state {state}"] += 1
        trusted = state in ("seen", "tracked")
        if 0 < area < LEAST_VISIBLE_PX:
            return
        if mask is not None and mask.any():
            others = [np.count_nonzero(mask & other) for place, other in enumerate(masks) if place != target]
            wrong = max(others, default=0) > np.count_nonzero(mask & truth)
            self.counts["wrong target"] += int(wrong)
            self.counts["wrong target, seen or tracked"] += int(wrong and trusted)
            if area == 0:
                self.counts["mask without a target"] += 1
                self.counts["mask without a target, seen or tracked"] += trusted
        if area == 0:
            self.counts["frames without a target"] += 1
            return
        value = iou(mask, truth) if mask is not None else 0.0
        if answered:
            self.ious.append(value)
        else:
            self.counts["frames before an answer since a cut"] += 1
        if mask is not None and mask.any():
            self.shown.append(value)
            if trusted:
                self.trusted.append(value)


class Follower:
    """A target that is answered late, with or without SAM."""

    def __init__(self, phrase: str, delay: int, *, sam: Segmenter | None = None) -> None:
        self._target = Target(phrase, TrackOptions(level="sam" if sam else "points"))
        self._ring, self._delay, self._sam = FrameRing(128), delay, sam
        self._asked: tuple[int, Any, Frame] | None = None

    def step(self, frame: Frame, small: SmallFrame, answer: Answer) -> tuple[Bool | None, str]:
        """Return mask and state at a frame."""
        self._ring.append(small)
        self._target.advance(small)
        due = frame.number - self._delay
        if due >= 0 and due % self._delay == 0:
            self._target.ground(answer(due), due, self._ring)
        if self._sam is not None:
            self._refine(frame)
        result = self._target.result(frame)
        return result.mask, result.state

    def _refine(self, frame: Frame) -> None:
        if self._sam is None:
            return
        if self._asked is not None and frame.number >= self._asked[0] + REFINE_DELAY:
            number, prompt, asked = self._asked
            found = self._sam.refine(asked.pixels, **prompt.arguments())
            self._target.refined(found, number, self._ring)
            self._asked = None
        if frame.number % REFINE_EVERY == 0 and self._asked is None:
            prompt = self._target.refine_prompt()
            self._asked = None if prompt is None else (frame.number, prompt, frame)


class Baseline:
    """The last answer's mask as it is, or warped from frame to frame by dense flow."""

    def __init__(self, delay: int, *, flows: bool) -> None:
        self._delay, self._flows = delay, flows
        self._now: Any = None
        self._coming: Any = None

    def step(self, number: int, flow: Any, answer: Answer) -> tuple[Bool | None, str]:
        """Return the mask at a frame."""
        if self._flows and flow is not None:
            self._now, self._coming = (
                None if mask is None else _REMAP(mask, flow, None, cv2.INTER_LINEAR)
                for mask in (self._now, self._coming)
            )
        if number % self._delay == 0:
            self._now = self._coming
            found = answer(number)
            self._coming = None if found.index is None else found.mask.astype(np.float32)
        return (None if self._now is None else self._now > 0.5), "drawn"


def _came_from(flow: Any) -> Any:
    """Return where each pixel was in the frame before: [y, x, 2]."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return flow + np.stack([x, y], axis=-1)


class Clip:
    """One clip with every method at every delay.

    Args:
        scene: the clip.
        phrase: the target.
        segmenter: answers key frames and prompts.
    """

    def __init__(self, scene: MovingScene, phrase: ReferringPhrase, segmenter: Segmenter) -> None:
        self._scene, self._phrase, self._segmenter = scene, phrase, segmenter
        self._delays = {str(delay): round(delay * scene.fps) for delay in DELAYS_S}
        self._answers: dict[int, Segmentation] = {}
        self._pixels: dict[int, Any] = {}
        self._methods: dict[str, dict[str, Follower | Baseline]] = {
            delay: {
                "points": Follower(phrase.phrase, frames),
                "points and sam": Follower(phrase.phrase, frames, sam=segmenter),
                "stale mask": Baseline(frames, flows=False),
                "dense flow": Baseline(frames, flows=True),
            }
            for delay, frames in self._delays.items()
        }
        self.tallies = {
            delay: {name: Tally() for name in [*each, "key frames"]} for delay, each in self._methods.items()
        }

    def run(self, length: int) -> None:
        """Run all methods through the first frames."""
        dense: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        before: SmallFrame | None = None
        for number in range(length):
            moving, time_s = self._scene.frame(number), number / self._scene.fps
            self._pixels[number] = moving.pixels
            frame = Frame(
                source="scenes", number=number, pixels=moving.pixels, captured_s=time_s, wall_s=time_s
            )
            small = shrink(frame)
            flow = None if before is None else _came_from(dense.calc(small.grey, before.grey, None))
            before = small
            for delay in self._delays:
                self._compare(delay, frame, small, flow, moving.masks)
            self._pixels.pop(number - 2 * max(self._delays.values()), None)

    def _compare(self, delay: str, frame: Frame, small: SmallFrame, flow: Any, masks: Bool) -> None:
        frames, tallies = self._delays[delay], self.tallies[delay]
        key = (frame.number // frames - 1) * frames  # the last frame that has been answered
        cuts = [cut for cut in self._scene.cuts if cut <= frame.number]
        answered = key >= max([0, *cuts])
        for name, method in self._methods[delay].items():
            if isinstance(method, Follower):
                mask, state = method.step(frame, small, self._answer)
            else:
                mask, state = method.step(frame.number, flow, self._answer)
            tallies[name].note(mask, masks, self._phrase.target, state, answered=answered)
        if frame.number % frames == 0:
            found = self._answer(frame.number)
            mask = None if found.index is None else found.mask
            tallies["key frames"].note(mask, masks, self._phrase.target, "seen")

    def _answer(self, number: int) -> Segmentation:
        if number not in self._answers:
            found = self._segmenter.segment(self._pixels[number], self._phrase.phrase)
            self._answers[number] = replace(found, candidates=None, heat=None)  # type: ignore[arg-type]
        return self._answers[number]


def run_piece(motion: Motion, first: int, last: int, seed: int, length: int) -> None:
    """Measure some of the clips and keep the tallies."""
    cv2.setNumThreads(1)
    PIECES.mkdir(exist_ok=True)
    with refdiff.load("mini", options=RunOptions(min_confidence=MIN_CONFIDENCE)) as segmenter:
        for place, (scene, phrase) in enumerate(islice(clips(motion, seed), last)):
            path = PIECES / f"{motion}-{place:02}.json"
            if place < first or path.exists():
                continue
            clip = Clip(scene, phrase, segmenter)
            clip.run(length)
            tallies = clip.tallies
            plain = {
                delay: {name: vars(tally) for name, tally in each.items()} for delay, each in tallies.items()
            }
            document = {"seed": scene.seed, "phrase": phrase.phrase, "tallies": plain}
            path.write_text(json.dumps(document), encoding="utf-8")
            means = {name: _mean(tally.ious) for name, tally in tallies["1.0"].items()}
            print(place, scene.seed, phrase.phrase, means, dict(tallies["1.0"]["points"].counts))  # noqa: T201


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def summarize(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the tallies of clips: delay -> method -> figures."""
    summary: dict[str, Any] = {}
    for delay in (str(each) for each in DELAYS_S):
        summary[delay] = {}
        for name in documents[0]["tallies"][delay]:
            each = [document["tallies"][delay][name] for document in documents]
            counts: dict[str, int] = defaultdict(int)
            for tally in each:
                for key, value in tally["counts"].items():
                    counts[key] += value
            summary[delay][name] = {
                "iou": _mean([value for tally in each for value in tally["ious"]]),
                "iou_with_mask": _mean([value for tally in each for value in tally["shown"]]),
                "iou_seen_or_tracked": _mean([value for tally in each for value in tally["trusted"]]),
                "counts": dict(sorted(counts.items())),
            }
        own = summary[delay]["key frames"]["iou"]
        for figures in summary[delay].values():
            figures["of_key_frames"] = round(figures["iou"] / own, 4) if own else None
    return summary


def join(motion: Motion) -> None:
    """Write the record from the pieces."""
    paths = sorted(PIECES.glob(f"{motion}-*.json"))
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    entry = {
        "clips": len(documents),
        "seeds": [document["seed"] for document in documents],
        "phrases": [document["phrase"] for document in documents],
        "size_yx": [480, 640],
        "frames_per_clip": MovingScene.length,
        "bundle": "mini",
        "min_confidence": MIN_CONFIDENCE,
        "delays_s": summarize(documents),
    }
    add_entry(RECORD, f"{motion} motion", entry)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--motion", default="moderate", choices=("slow", "moderate", "fast"))
    parser.add_argument("--piece", help="first:last of the clips, such as 0:5")
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--length", type=int, default=MovingScene.length)
    parser.add_argument("--join", action="store_true")
    given = parser.parse_args()
    if given.piece:
        first, last = (int(part) for part in given.piece.split(":"))
        run_piece(given.motion, first, last, given.seed, given.length)
    if given.join:
        join(given.motion)


if __name__ == "__main__":
    main()
