"""Run the pipeline stage by stage on a few samples, so that graphs are checked on what they will be fed.

A stage is one model: each is loaded, run, written and released before the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from refdiff.contracts.options import Options, options_for
from refdiff.contracts.session import SessionFactory
from refdiff.data.sample import Sample
from refdiff.errors import InputError
from refdiff.export.sam_graphs import prompt_vectors
from refdiff.export.wrappers import clip_positions
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.attention_branch import AttentionBranch
from refdiff.runtime.clip_branch import ClipBranch
from refdiff.runtime.phrase import direction, parse_phrase
from refdiff.runtime.prompt import read_prompt
from refdiff.runtime.proposals import MaskProposer
from refdiff.runtime.refinement import Refiner
from refdiff.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from refdiff.contracts.results import Candidates
    from refdiff.contracts.spec import ModelSpec
    from refdiff.contracts.stack import ModelStack

_SCENES = ((2_000_011, "the red mug on the left"), (2_000_012, "big bowl behind the bottle"))
"""Seed and phrase. Any scene and phrase will do: the graphs' inputs are recorded, the masks are not used."""

_POINTS_PER_SIDE = 8
"""Points per side of SAM's grid: 64 points make one decoder call, which is as good a check as sixteen."""


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
"""SAM comes first, because CLIP encodes its candidates."""


class PipelineFeeds:
    """Runs the pipeline's stages over given sessions; stages have to run in the order of `STAGES`.

    Args:
        stack: the models; CLIP is loaded in its own stage.
        samples: images and phrases.
        options: each sample is run under each of them.
    """

    def __init__(self, stack: ModelStack, samples: Sequence[Sample], options: Sequence[Options]) -> None:
        self._stack = stack
        self._tokenizer = Tokenizer(stack.tokenizer_json, stack.spec.context_length)
        self._runs = list(product(options, samples))
        self._candidates: list[Candidates] = []

    @classmethod
    def rendered(cls, stack: ModelStack, *, thorough: bool) -> PipelineFeeds:
        """Return feeds of rendered scenes.

        Args:
            stack: the models.
            thorough: two scenes in two variants; False: one in one, which still runs every graph.
        """
        scenes = _SCENES if thorough else _SCENES[:1]
        samples = [
            Sample(id=phrase, image=render_scene(seed).image, phrase=phrase) for seed, phrase in scenes
        ]
        return cls(stack, samples, _small_options(stack.spec, thorough=thorough))

    def run_stage(self, name: str, sessions: SessionFactory) -> None:
        """Run one of `STAGES` on all samples, for what it feeds the sessions."""
        {"sam": self._run_sam, "diffusion": self._run_diffusion, "clip": self._run_clip}[name](sessions)

    def _run_sam(self, sessions: SessionFactory) -> None:
        """Propose masks (METHOD §2), and segment a box with a point in it."""
        self._candidates = []
        vectors = prompt_vectors(self._stack.sam)
        for options, sample in self._runs:
            proposer = MaskProposer(sessions, self._stack.spec.sam, vectors, options)
            image = sample.read()
            proposals = proposer.encode(image)
            if proposals.candidates is None:
                raise InputError("feeds need candidates before there is a phrase; set peaks to 0")
            self._candidates.append(proposals.candidates)
            height, width = image.shape[:2]
            prompt = read_prompt((height, width), (0, 0, width, height), [(width / 2, height / 2)], None)
            Refiner(sessions, self._stack.spec.sam, vectors).refine(image, prompt, None, proposals.embedding)

    def _run_diffusion(self, sessions: SessionFactory) -> None:
        """Compute the heatmaps (METHOD §4)."""
        for options, sample in self._runs:
            branch = AttentionBranch(sessions, self._stack.spec.diffusion, options, self._tokenizer)
            branch.heatmap(branch.encode(sample.read()), parse_phrase(sample.phrase))

    def _run_clip(self, sessions: SessionFactory) -> None:
        """Encode the candidates and the texts (METHOD §3, §5, §6)."""
        positions = clip_positions(self._stack)
        for (options, sample), candidates in zip(self._runs, self._candidates, strict=True):
            branch = ClipBranch(sessions, self._stack.spec.clip, options, self._tokenizer, positions)
            image, query = sample.read(), parse_phrase(sample.phrase)
            branch.soft_vectors(image, candidates)
            side = direction(query.text, word_boundaries=options.crops.word_boundaries)
            branch.hard_vectors(image, candidates, side)
            branch.text_vectors([query.text, query.root])


def _small_options(spec: ModelSpec, *, thorough: bool) -> list[Options]:
    """Return options of both variants, which differ in shapes, or of `official`, which runs every graph."""
    names = ("official", "edge") if thorough else ("official",)
    variants = [options_for(spec, variant=name) for name in names]
    return [
        dataclasses.replace(
            options,
            proposals=dataclasses.replace(
                options.proposals,
                points_per_side=min(_POINTS_PER_SIDE, options.proposals.points_per_side),
                decode_all_prompts=True,  # random weights may find no prompt worth a mask
            ),
        )
        for options in variants
    ]
