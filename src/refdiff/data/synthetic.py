"""What the miniature is examined with: one phrase and its true mask per held-out scene.

In: a seed. Out: a `Question`. Evaluation, check and demo all ask by this one rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Bool
from refdiff.miniature.scenes import HELD_OUT_FROM, refer, render_scene

__all__ = ["DEMO_SEEDS", "HELD_OUT_FROM", "Question", "question", "questions"]

DEMO_SEEDS = (1_000_007, 1_000_009, 1_000_025, 1_000_039, 1_000_041, 1_000_049)
"""Chosen before the models were trained: tall, wide and square pictures, different kinds of phrase."""

_STREAM = 2
"""Keeps the draw of the phrase apart from the draw of the scene, which uses the bare seed."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A picture, what is asked of it, and the right answer."""

    seed: int
    image: NDArray[np.uint8]
    """[y, x, 3] RGB."""
    phrase: str
    truth: Bool
    """[y, x]."""
    cues: frozenset[str]
    """Which of kind, colour, size, place, relation the phrase uses."""


def question(seed: int) -> Question | None:
    """The question of a seed; None where no object of the scene can be singled out."""
    scene, rng = render_scene(seed), np.random.default_rng((seed, _STREAM))
    referrals = refer(scene, rng)
    if not referrals:
        return None
    chosen = referrals[int(rng.integers(len(referrals)))]
    return Question(
        seed=seed,
        image=scene.image,
        phrase=chosen.phrase,
        truth=scene.masks[chosen.target],
        cues=chosen.cues,
    )


def questions(seeds: Iterable[int]) -> Iterator[Question]:
    """The questions of seeds, in order; a seed without one is passed over."""
    for seed in seeds:
        asked = question(seed)
        if asked is not None:
            yield asked
