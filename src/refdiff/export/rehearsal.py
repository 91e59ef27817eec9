"""The export's stages, one per model: each is loaded, rehearsed, written and let go before the next.

The pipeline's own steps on a few pictures, stage by stage: a graph is measured on what it will be fed.

In: samples and options. The stages have to be played in order: CLIP looks at SAM's candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from refdiff.contracts.options import Options
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import Float, SessionFactory
from refdiff.contracts.spec import ModelSpec
from refdiff.data.sample import Sample
from refdiff.runtime.attention_branch import attend, latent_state
from refdiff.runtime.clip_branch import hard_vectors, soft_vectors, text_vectors
from refdiff.runtime.phrase import direction, read_phrase
from refdiff.runtime.proposals import propose
from refdiff.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Stage:
    """One model's graphs, by the component that has to be in memory to write them."""

    name: str
    graphs: tuple[tuple[str, tuple[str, ...]], ...]
    """Component -> its graphs."""

    @property
    def graph_names(self) -> tuple[str, ...]:
        """All graphs of the stage."""
        return tuple(name for _, names in self.graphs for name in names)


STAGES = (
    Stage("sam", (("sam", ("sam_encoder", "sam_decoder", "sam_masks")),)),
    Stage(
        "diffusion",
        (
            ("text_encoder", ("sd_text",)),
            ("vae", ("vae_encoder",)),
            ("unet", ("unet", "unet_taps")),
        ),
    ),
    Stage("clip", (("clip", ("clip_text", "clip_image")),)),
)
"""SAM comes first, because CLIP looks at its candidates."""


class Rehearsal:
    """Plays the pipeline's stages over somebody's sessions.

    Args:
        spec: the models' sizes.
        tokenizer: of the bundle to be.
        samples: images and phrases.
        options: each sample is segmented under each of them.
        positions: [g*g, w], CLIP's position table without the class token's row; asked for with CLIP's stage.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        samples: Sequence[Sample],
        options: Sequence[Options],
        positions: Callable[[], Float],
    ) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._runs = list(product(options, samples))
        self._positions = positions
        self._candidates: list[Candidates] = []

    def play(self, stage: str, sessions: SessionFactory) -> None:
        """Run one of `stages.STAGES`."""
        {"sam": self._sam, "diffusion": self._diffusion, "clip": self._clip}[stage](sessions)

    def _sam(self, sessions: SessionFactory) -> None:
        """Look for candidates (METHOD §2)."""
        self._candidates = [
            propose(sessions, self._spec.sam, sample.read(), options.proposals)
            for options, sample in self._runs
        ]

    def _diffusion(self, sessions: SessionFactory) -> None:
        """Read the attention (METHOD §4)."""
        spec, tokenizer = self._spec.diffusion, self._tokenizer
        for options, sample in self._runs:
            state = latent_state(sessions, spec, options.attention, tokenizer, options.seed, sample.read())
            attend(sessions, spec, options.attention, tokenizer, state, read_phrase(sample.phrase))

    def _clip(self, sessions: SessionFactory) -> None:
        """Look at the candidates (METHOD §5, §6)."""
        spec, positions = self._spec.clip, self._positions()
        for (options, sample), candidates in zip(self._runs, self._candidates, strict=True):
            crops, image, query = options.crops, sample.read(), read_phrase(sample.phrase)
            side = direction(query.text, word_boundaries=crops.word_boundaries)
            soft_vectors(sessions, spec, positions, image, candidates, crops)
            hard_vectors(sessions, spec, positions, image, candidates, crops, side)
            text_vectors(sessions, self._tokenizer, [query.text, query.root])
