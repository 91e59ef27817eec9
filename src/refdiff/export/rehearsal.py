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
from refdiff.errors import InputError
from refdiff.runtime.attention_branch import AttentionBranch
from refdiff.runtime.clip_branch import ClipBranch
from refdiff.runtime.phrase import direction, parse_phrase
from refdiff.runtime.proposals import MaskProposer
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
        """Propose masks (METHOD §2)."""
        self._candidates = []
        for options, sample in self._runs:
            found = MaskProposer(sessions, self._spec.sam, options).encode(sample.read()).candidates
            if found is None:
                raise InputError("the rehearsal needs candidates before it has a phrase; set peaks to 0")
            self._candidates.append(found)

    def _diffusion(self, sessions: SessionFactory) -> None:
        """Compute the heatmaps (METHOD §4)."""
        for options, sample in self._runs:
            branch = AttentionBranch(sessions, self._spec.diffusion, options, self._tokenizer)
            branch.heatmap(branch.encode(sample.read()), parse_phrase(sample.phrase))

    def _clip(self, sessions: SessionFactory) -> None:
        """Encode the candidates and the texts (METHOD §3, §5, §6)."""
        positions = self._positions()
        for (options, sample), candidates in zip(self._runs, self._candidates, strict=True):
            branch = ClipBranch(sessions, self._spec.clip, options, self._tokenizer, positions)
            image, query = sample.read(), parse_phrase(sample.phrase)
            branch.soft_vectors(image, candidates)
            side = direction(query.text, word_boundaries=options.crops.word_boundaries)
            branch.hard_vectors(image, candidates, side)
            branch.text_vectors([query.text, query.root])
