"""Rendered table-top scenes as samples: one phrase and its true mask for each scene.

In: seeds. Out: samples with pixels, truth and cues. The same seed gives the same sample. All seeds that the
package uses are listed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np

from refdiff.data.sample import Sample
from refdiff.errors import InputError
from refdiff.miniature.scenes import HELD_OUT_FROM, refer, render_scene
from refdiff.miniature.scenes.phrases import FALSEHOODS, mislead
from refdiff.runtime.image import png

__all__ = [
    "CALIBRATION_FROM",
    "DEMO_SEEDS",
    "HELD_OUT_FROM",
    "SENSITIVITY_FROM",
    "RenderedScenes",
    "ScenesWithFalsehoods",
    "calibration_scenes",
    "demo_samples",
    "encoded",
    "scene_sample",
    "scene_samples",
]

DEMO_SEEDS = (1_000_007, 1_000_009, 1_000_025, 1_000_039, 1_000_041, 1_000_132)
"""Held-out scenes of `demo` and `profile`: tall, wide and square images, different kinds of phrase. The last
was chosen because the miniature's mask is wrong there, the others before the models were trained."""

CALIBRATION_FROM = 500_000
"""First seed of calibration: beyond the training scenes (0 to 19,999) and before the held-out ones, on which
what is calibrated is judged."""

SENSITIVITY_FROM = 3_000_000
"""First seed of the scenes that precisions are compared on: neither trained on nor those that the final
accuracy is reported on."""

_FALSE_STREAM = 3
_PHRASE_STREAM = 2
"""Separates the random stream of the phrase from that of the scene, which uses the bare seed."""


def scene_sample(seed: int) -> Sample | None:
    """Render the scene of a seed and draw a phrase for one of its objects.

    Returns:
        None where no object of the scene can be singled out, which is rare.
    """
    scene, rng = render_scene(seed), np.random.default_rng((seed, _PHRASE_STREAM))
    referrals = refer(scene, rng)
    if not referrals:
        return None
    chosen = referrals[int(rng.integers(len(referrals)))]
    return Sample(
        id=f"scene {seed}",
        image=scene.image,
        phrase=chosen.phrase,
        truth=scene.masks[chosen.target],
        cues=chosen.cues,
        seed=seed,
    )


def scene_samples(seeds: Iterable[int]) -> Iterator[Sample]:
    """Yield the samples of seeds in order; a seed without one is skipped."""
    for seed in seeds:
        sample = scene_sample(seed)
        if sample is not None:
            yield sample


@dataclass(frozen=True, kw_only=True)
class RenderedScenes:
    """A dataset of `count` scenes with consecutive seeds, rendered each time they are iterated.

    Raises:
        InputError: no scenes, or a negative seed.
    """

    count: int
    seed: int = HELD_OUT_FROM
    """Seed of the first scene."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0:
            raise InputError(f"got count {self.count} and seed {self.seed}, expected 1 and 0 or more")

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        """Render the samples in the order of their seeds."""
        return islice(scene_samples(count(self.seed)), self.count)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Seed and count."""
        return {"kind": "scenes", "seed": self.seed, "count": self.count}


def calibration_scenes(count: int, seed: int = CALIBRATION_FROM) -> RenderedScenes:
    """Return scenes to calibrate with.

    Raises:
        InputError: no scenes, or seeds that reach the held-out ones.
    """
    scenes = RenderedScenes(count=count, seed=seed)
    if seed + count > HELD_OUT_FROM:
        raise InputError(
            f"{count} scenes from seed {seed} reach {HELD_OUT_FROM}, from where on scenes are for judging; "
            f"take an earlier seed, such as {CALIBRATION_FROM}"
        )
    return scenes


def demo_samples(count: int = len(DEMO_SEEDS)) -> tuple[Sample, ...]:
    """Render the first `count` demo scenes."""
    return tuple(scene_samples(DEMO_SEEDS[:count]))


def encoded(sample: Sample) -> Sample:
    """Return the sample with its image as a PNG file's bytes, so that decoding is part of the work."""
    return dataclasses.replace(sample, image=png(sample.read()))


@dataclass(frozen=True, kw_only=True)
class ScenesWithFalsehoods:
    """A dataset of rendered scenes with true phrases, and phrases that fit nothing in their scene.

    Each scene has up to `true_phrases` samples with a mask, and one sample without a target for each of
    `FALSEHOODS` that can be worded; subset names them: "scenes, true", "scenes, no such kind", and so on.

    Raises:
        InputError: no scenes, or a negative seed.
    """

    count: int
    seed: int = HELD_OUT_FROM
    """Seed of the first scene."""
    true_phrases: int = 2

    def __post_init__(self) -> None:
        RenderedScenes(count=self.count, seed=self.seed)

    def __len__(self) -> int:
        """Return the largest possible number of samples; a few cannot be worded."""
        return self.count * (self.true_phrases + len(FALSEHOODS))

    def __iter__(self) -> Iterator[Sample]:
        """Render the samples; those of one scene follow each other."""
        for seed in range(self.seed, self.seed + self.count):
            scene, rng = render_scene(seed), np.random.default_rng((seed, _FALSE_STREAM))
            referrals = list(refer(scene, rng))
            picked = rng.permutation(len(referrals))[: self.true_phrases]
            for number, at in enumerate(picked):
                found = referrals[at]
                yield Sample(
                    id=f"scene {seed}, true {number}",
                    image=scene.image,
                    phrase=found.phrase,
                    truth=scene.masks[found.target],
                    cues=found.cues,
                    seed=seed,
                    subset="scenes, true",
                    picture=f"scene {seed}",
                )
            for falsehood in FALSEHOODS:
                phrase = mislead(scene, falsehood, rng)
                if phrase is not None:
                    yield Sample(
                        id=f"scene {seed}, {falsehood}",
                        image=scene.image,
                        phrase=phrase,
                        truth=np.zeros(scene.image.shape[:2], dtype=np.bool_),
                        seed=seed,
                        subset=f"scenes, no such {falsehood}",
                        picture=f"scene {seed}",
                    )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Seed and count."""
        return {"kind": "scenes with falsehoods", "seed": self.seed, "count": self.count}
