"""An image as the segmenter knows it before any phrase."""

from __future__ import annotations

from dataclasses import dataclass, field

from refdiff.contracts.options import Options
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import ImageArray
from refdiff.contracts.spec import ModelSpec
from refdiff.errors import InputError
from refdiff.runtime.attention_branch import LatentState
from refdiff.runtime.clip_branch import ClipViews
from refdiff.runtime.proposals import Proposals


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The options, models and graphs of a segmenter: an image encoded with others is of no use to it."""

    options: Options
    spec: ModelSpec
    sessions: object = field(repr=False)
    """The session factory."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """Everything about an image that needs no phrase; use it for any number of phrases."""

    pixels: ImageArray
    """[y, x, 3] RGB, read-only: a copy of the caller's."""
    proposals: Proposals = field(repr=False)
    latent: LatentState | None = field(repr=False)
    """None in mode `disc+seg`, which has no heatmap."""
    views: ClipViews | None = field(repr=False)
    """None in modes that do not use CLIP, and where the candidates wait for a phrase's heatmap."""
    origin: Origin

    @property
    def size_yx(self) -> tuple[int, int]:
        """The image's size in px."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def candidates(self) -> Candidates | None:
        """The masks a phrase chooses from; None where they depend on the phrase's heatmap."""
        return self.proposals.candidates

    def check_origin(self, segmenter: Origin) -> None:
        """Refuse an image that was not encoded with this segmenter's options, models and graphs.

        Raises:
            InputError: it was encoded with others.
        """
        theirs, ours = self.origin, segmenter
        if theirs.options != ours.options or theirs.spec != ours.spec:
            raise InputError(
                f"the image was encoded with variant {theirs.options.variant!r}, mode {theirs.options.mode!r}"
                f" on {theirs.spec.name}; this segmenter has {ours.options.variant!r}, {ours.options.mode!r}"
                f" on {ours.spec.name}, or other options: encode the image with it"
            )
        if theirs.sessions is not ours.sessions:
            raise InputError(
                "the image was encoded on another bundle's graphs; encode the image with this segmenter"
            )
