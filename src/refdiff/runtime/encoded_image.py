"""A picture as the segmenter knows it before any phrase.

Axes: n = candidates, y/x = picture rows/columns, e = CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.options import Options
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import Float
from refdiff.contracts.spec import ModelSpec
from refdiff.errors import InputError
from refdiff.runtime.attention_branch import LatentState
from refdiff.runtime.spatial import Direction


class ByDirection:
    """A picture's vectors [n, e] for each direction of the position ramp, computed once each and kept.

    A phrase says "left", "right" or neither, so there are at most three such arrays. They depend on the
    picture alone: whichever phrase asks first, the same direction gives the same array.
    """

    def __init__(self) -> None:
        self._known: dict[Direction, Float] = {}

    def towards(self, direction: Direction, compute: Callable[[Direction], Float]) -> Float:
        """The vectors under the ramp that favours `direction` (None: no ramp); `compute` runs once."""
        if direction not in self._known:
            self._known[direction] = compute(direction)
        return self._known[direction]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is known of a picture before any phrase; use it for as many phrases as you like."""

    image: NDArray[np.uint8]
    """[y, x, 3] RGB, read-only: the scene's own copy."""
    spec: ModelSpec
    options: Options
    """What it was encoded with; only a segmenter with the same can read it."""
    candidates: Candidates | None
    """None where they wait for a phrase's map: in mode `gen`, and where SAM is prompted at its peaks."""
    latent: LatentState | None
    """None in mode `disc+seg`, which has no map."""
    soft: Float = field(repr=False, compare=False)
    """[n, e] vectors of the masked attention; empty where the mode does not read them."""
    embedding: Float | None = field(default=None, repr=False, compare=False)
    """SAM's, kept where SAM is prompted at the peaks of each phrase's map."""
    sessions: object = field(repr=False, compare=False)
    """The session factory whose graphs it was made with."""
    hard: ByDirection = field(default_factory=ByDirection, repr=False, compare=False)
    """[n, e] vectors of the crops; a direction is computed for the first phrase that names it."""

    @property
    def size_yx(self) -> tuple[int, int]:
        """The picture's size in px."""
        return self.image.shape[0], self.image.shape[1]

    def check_made_with(self, options: Options, spec: ModelSpec, sessions: object) -> None:
        """Refuse a scene of other options or models.

        Raises:
            InputError: it was made with others.
        """
        if self.options != options or self.spec != spec:
            raise InputError(
                f"the scene was encoded with variant {self.options.variant!r}, mode {self.options.mode!r}"
                f" on {self.spec.name}; this segmenter has {options.variant!r}, {options.mode!r}"
                f" on {spec.name}, or other options: encode the picture with it"
            )
        if self.sessions is not sessions:
            raise InputError(
                "the scene was encoded on another bundle's graphs; encode the picture with this segmenter"
            )
