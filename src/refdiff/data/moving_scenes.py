"""Clips of rendered table-top scenes whose objects move, with exact masks: video without a camera.

In: a seed. Out: frames. Objects slide, turn, come nearer and cross each other, and one of them leaves the
picture and comes back; the camera pans; the clip cuts to another table and back. The same seed gives the same
clip, to the byte with the same numpy, Pillow and OpenCV.

Axes: n = objects of the clip, those of the second shot last; y/x = image rows/columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from refdiff.contracts.optional import load_cv2
from refdiff.contracts.session import Bool, ImageArray
from refdiff.data.moving_shot import DRAWING, Rates, Shot, draw_shot
from refdiff.errors import InputError
from refdiff.miniature.scenes import ReferringPhrase, RenderedScene, refer
from refdiff.miniature.scenes.description import matches
from refdiff.miniature.scenes.scene import LEAST_VISIBLE, describe_object

Motion = Literal["still", "slow", "moderate", "fast"]
"""How fast objects move in frames of 640 px: not at all; 1 to 2 px a frame; 2 to 4; 4 to 6."""

_RATES: dict[Motion, Rates] = {
    "still": Rates((0.0, 0.0), 0.0, 0.0, 0.0, 0.0),
    "slow": Rates((1.0, 2.0), 0.3, 0.25, 10.0, 0.03),
    "moderate": Rates((2.0, 4.0), 0.6, 0.5, 16.0, 0.05),
    "fast": Rates((4.0, 6.0), 1.2, 1.0, 22.0, 0.08),
}

_STREAM = 18
"""Separates the random stream of a clip from that of the still scene of the same seed."""
_SHOTS = 210, 45
"""Frames of the first shot and of the second; they alternate."""
_NOISE = 2.0
"""Standard deviation of the camera's noise, of 255."""
_NOISE_SHIFTS = 64


@dataclass(frozen=True, eq=False)
class MovingFrame:
    """A frame with the visible pixels of every object of its clip."""

    pixels: ImageArray
    """[y, x, 3] RGB."""
    masks: Bool
    """[n, y, x], pairwise disjoint; that of an object that is out of sight is empty."""


class MovingScene:
    """A clip without an end: two shots alternate while the objects move on.

    Args:
        seed: 0 or more.
        motion: see `Motion`.
        size_yx: size of the frames in px, each side 120 or more; speeds grow with the longer one.
        cut: whether the clip cuts to a second table and back.

    Raises:
        InputError: an argument is out of its range.
        MissingDependencyError: OpenCV is not installed.
    """

    fps = 30
    length = 300
    """Number of frames in which everything happens once: crossing, leaving and coming back, two cuts."""

    def __init__(
        self,
        seed: int,
        motion: Motion = "moderate",
        *,
        size_yx: tuple[int, int] = (480, 640),
        cut: bool = True,
    ) -> None:
        if seed < 0 or motion not in _RATES or min(size_yx) < 120:
            raise InputError(
                f"got seed {seed}, motion {motion!r} and size {size_yx}, expected a seed of 0 or more, "
                f"one of the motions {', '.join(_RATES)}, and sides of 120 px or more"
            )
        self.seed, self.motion, self.size_yx = seed, motion, size_yx
        self._shots, self._phrases = self._draw(2 if cut else 1)
        rng = np.random.default_rng((seed, _STREAM, 1))
        noise = rng.normal(0.0, _NOISE, [side + _NOISE_SHIFTS for side in size_yx]).round()
        self._noise = [
            np.repeat(np.maximum(part, 0).astype(np.uint8)[:, :, None], 3, axis=2) for part in (noise, -noise)
        ]

    @property
    def phrases(self) -> tuple[ReferringPhrase, ...]:
        """Phrases for objects of the first shot, at least one, by kind, color and size alone.

        They stay true while objects move, and fit nothing in the second shot. `target` is the index n.
        """
        return self._phrases

    @property
    def leaver(self) -> int:
        """The index n of the object of the first shot that leaves the picture and comes back."""
        return self._shots[0].leaver

    @property
    def cuts(self) -> tuple[int, ...]:
        """The numbers below `length` of the frames that begin another shot."""
        numbers = range(1, self.length)
        return tuple(number for number in numbers if self.shot_at(number) != self.shot_at(number - 1))

    def shot_at(self, number: int) -> int:
        """Return which shot a frame belongs to, 0 or 1."""
        return int(len(self._shots) > 1 and number % sum(_SHOTS) >= _SHOTS[0])

    def frame(self, number: int) -> MovingFrame:
        """Render the frame of a number of 0 or more; frames may be asked for in any order."""
        index = self.shot_at(number)
        pixels, owner = self._shots[index].paint(number)
        counts = [len(shot.movers) for shot in self._shots]
        first = sum(counts[:index])
        masks = np.zeros((sum(counts), *self.size_yx), np.bool_)
        for place in range(counts[index]):
            np.equal(owner, place + 1, out=masks[first + place])
        self._add_noise(pixels, number)
        return MovingFrame(pixels, masks)

    def _add_noise(self, pixels: ImageArray, number: int) -> None:
        """Add a cut of one large sheet of noise; drawing it for every frame would take most of the time."""
        cv2, rng = load_cv2(DRAWING), np.random.default_rng((self.seed, _STREAM, 2, number))
        top, left = (int(part) for part in rng.integers(0, _NOISE_SHIFTS + 1, 2))
        bright, dark = (
            sheet[top : top + self.size_yx[0], left : left + self.size_yx[1]] for sheet in self._noise
        )
        cv2.add(pixels, bright, dst=pixels)
        cv2.subtract(pixels, dark, dst=pixels)

    def _draw(self, count: int) -> tuple[list[Shot], tuple[ReferringPhrase, ...]]:
        """Draw shots until something in the first can be named that is not in the second."""
        attempt = 0
        while True:
            rng = np.random.default_rng((self.seed, _STREAM, 0, attempt))
            shots = [draw_shot(self.size_yx, _RATES[self.motion], rng) for _ in range(count)]
            found = self._refer(*shots, rng=rng)
            if found:
                return shots, found
            attempt += 1

    def _refer(self, shot: Shot, *others: Shot, rng: np.random.Generator) -> tuple[ReferringPhrase, ...]:
        scene = self._describe(shot)
        elsewhere = [self._describe(other) for other in others]
        if scene is None or None in elsewhere:
            return ()
        drafts = [draft for _ in range(8) for draft in refer(scene, rng)]
        lasting = {
            draft.target: draft
            for draft in drafts
            if not draft.cues & {"place", "relation"}
            and not any(matches(other, draft.description) for other in elsewhere if other is not None)
        }
        return tuple(lasting[target] for target in sorted(lasting))

    def _describe(self, shot: Shot) -> RenderedScene | None:
        """Return the shot's first frame as a still scene; None if it shows too little of an object."""
        pixels, owner = shot.paint(0)
        masks = np.stack([owner == place + 1 for place in range(len(shot.movers))])
        for mask, mover in zip(masks, shot.movers, strict=True):
            if np.count_nonzero(mask) < LEAST_VISIBLE * np.count_nonzero(mover.rgba[:, :, 3] >= 128):
                return None
        objects = tuple(describe_object(*pair) for pair in zip(shot.placed, masks, strict=True))
        return RenderedScene(self.seed, pixels, masks, objects)
