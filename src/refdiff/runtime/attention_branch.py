"""The attention of Stable Diffusion's UNet to a phrase, as a heatmap over the image (METHOD §4).

What depends on the image alone, the unconditional first pass included, is computed once and kept as a
`LatentState`. A phrase then costs one conditional first pass, and two rows of every later pass.

Axes: c = latent channels, s = latent side, l = tapped layers, q = query cells, t = tokens, d = context width,
k = phrases, y/x = image rows/columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from refdiff.contracts.options import AttentionOptions, Options
from refdiff.contracts.session import Array, Float, ImageArray, SessionFactory
from refdiff.contracts.spec import DiffusionSpec
from refdiff.errors import EngineError, InputError
from refdiff.runtime.batching import TEXT_ROWS, UNET_ROWS, batch_size, run_batched
from refdiff.runtime.diffusion import (
    add_noise,
    alphas_cumprod,
    clean_latent,
    ddim_step,
    draw_noise,
    guide,
    predicted_noise,
)
from refdiff.runtime.map_reader import PROMPT_SUFFIX, AttentionLogits, MapReader
from refdiff.runtime.observer import NullObserver, Observer, observed
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.resize import diffusion_input
from refdiff.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LatentState:
    """The part of the attention branch that needs no phrase; any number of phrases use it."""

    size_yx: tuple[int, int]
    """The image's size in px."""
    noised: Float
    """[1, c, s, s], at level `start_level`."""
    empty_context: Float | None = None
    """[1, t, d], of the unconditional prompt; None at guidance 1, which does not use it."""
    first: Mapping[str, Float] = field(default_factory=dict)
    """Outputs of the UNet in the unconditional first pass, [1, …] each; empty at guidance 1."""


class AttentionBranch:
    """Computes heatmaps with the graphs `vae_encoder`, `sd_text`, `unet` and `unet_taps`.

    Args:
        sessions: opens the graphs.
        spec: Stable Diffusion's sizes.
        options: of the segmenter.
        tokenizer: of the bundle.
        observer: notified of the stages "latent" and "attention".

    Raises:
        InputError: the options need an output that the graphs do not have, or no pass at all.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        spec: DiffusionSpec,
        options: Options,
        tokenizer: Tokenizer,
        observer: Observer | None = None,
    ) -> None:
        _check(options.attention)
        self.reader = MapReader(options, spec, tokenizer)
        self._sessions = sessions
        self._spec = spec
        self._options = options
        self._attention = options.attention
        self._tokenizer = tokenizer
        self._observer = observer or NullObserver()
        self._alphas = alphas_cumprod(spec)  # [train_timesteps]

    @observed("latent")
    def encode(self, image: ImageArray) -> LatentState | None:
        """Return everything that depends on the image alone (METHOD §4.1 to §4.3).

        Args:
            image: [y, x, 3] RGB.

        Returns:
            None in mode `disc+seg`, which has no heatmap.

        Raises:
            EngineError: a graph failed or returned values that are not finite.
        """
        if self._options.mode == "disc+seg":
            return None
        attention, spec = self._attention, self._spec
        moments = self._run("vae_encoder", {"image": diffusion_input(image, spec.image_size)})["moments"]
        shape = (1, moments.shape[1] // 2, *moments.shape[2:])
        posterior_noise, noise = draw_noise(self._options.seed, shape)
        clean = clean_latent(
            moments, posterior_noise if attention.sample_posterior else None, spec.scaling_factor
        )
        noised = add_noise(clean, noise, float(self._alphas[attention.start_level]))
        size_yx = (image.shape[0], image.shape[1])
        if attention.guidance == 1:
            return LatentState(size_yx=size_yx, noised=noised)
        context = self._contexts([""])
        first = self._run_unet(0, noised, context)
        return LatentState(size_yx=size_yx, noised=noised, empty_context=context, first=first)

    def heatmap(self, latent: LatentState | None, phrase: Phrase) -> Float | None:
        """Return the heatmap [y, x], 0..1, of one phrase: see `heatmaps`."""
        return next(self.heatmaps(latent, [phrase]))

    def heatmaps(
        self, latent: LatentState | None, phrases: Sequence[Phrase], *, batch_size: int = UNET_ROWS
    ) -> Iterator[Float | None]:
        """Compute the heatmap c of each phrase (METHOD §4.6, §10.4); the UNet runs as they are taken.

        Args:
            latent: from `encode`.
            phrases: such as passed `Tokenizer.check_length`.
            batch_size: phrases of a UNet call at most; later passes take two rows for a phrase.

        Yields:
            For each phrase [y, x], 0..1; None in mode `disc+seg`.

        Raises:
            EngineError: a graph failed or returned values that are not finite.
        """
        if latent is None:
            yield from repeat(None, len(phrases))
            return
        every = self.logits(latent, phrases, batch_size=batch_size)
        for phrase, of_phrase in zip(phrases, every, strict=True):
            yield self._read(of_phrase, latent.size_yx, phrase)

    def logits(
        self, latent: LatentState, phrases: Sequence[Phrase], *, batch_size: int = UNET_ROWS
    ) -> Iterator[AttentionLogits]:
        """Compute the logits of every pass, in order (METHOD §4.3 to §4.5).

        Args:
            latent: from `encode`.
            phrases: as for `heatmaps`.
            batch_size: as for `heatmaps`.

        Yields:
            Those of each phrase.
        """
        for first in range(0, len(phrases), TEXT_ROWS):
            contexts = self._encode_phrases(phrases[first : first + TEXT_ROWS])
            for start in range(0, len(contexts), batch_size):
                yield from self._attend(latent, contexts[start : start + batch_size], batch_size)

    @observed("attention")
    def _read(self, logits: AttentionLogits, size_yx: tuple[int, int], phrase: Phrase) -> Float:
        return self.reader.heatmap(logits, size_yx, phrase)

    @observed("attention")
    def _encode_phrases(self, phrases: Sequence[Phrase]) -> Float:
        """Return the UNet's contexts [k, t, d]."""
        return self._contexts([phrase.text + PROMPT_SUFFIX for phrase in phrases])

    @observed("attention")
    def _attend(self, latent: LatentState, contexts: Float, rows: int) -> list[AttentionLogits]:
        """Return the logits of the phrases of `contexts` [k, t, d]."""
        attention = self._attention
        both = _paired(latent.empty_context, contexts)  # [2k, t, d]; [k, t, d] at guidance 1
        branches = len(both) // len(contexts)
        x = np.repeat(latent.noised, len(contexts), axis=0)  # [k, c, s, s]
        passes: list[dict[str, Float]] = []
        for index in range(len(attention.timesteps)):
            if index == 0:  # the unconditional row is in `latent`
                outputs = self._run_unet(0, x, contexts, rows)
                outputs = {name: _paired(latent.first.get(name), each) for name, each in outputs.items()}
            else:
                outputs = self._run_unet(index, np.repeat(x, branches, axis=0), both, rows)
            guided = {
                # Guidance strengthens words: how cells attend to cells is taken from the phrase's branch.
                name: _guided(each, branches, 1.0 if name == "self_taps" else attention.guidance)
                for name, each in outputs.items()
            }
            if "eps" in guided:
                x = self._step(x, guided.pop("eps"), index)
            passes.append(guided)
        return [_logits(passes, i) for i in range(len(contexts))]

    def _contexts(self, prompts: Sequence[str]) -> Float:
        """Return the UNet's context of each prompt: [k, t, d]."""
        ids = np.stack([self._tokenizer.diffusion_ids(prompt, self._spec.padding) for prompt in prompts])
        return self._run("sd_text", {"ids": ids}, TEXT_ROWS)["context"]

    def _run_unet(self, index: int, x: Float, context: Float, rows: int = UNET_ROWS) -> dict[str, Float]:
        """Run pass `index`: its prediction and logits; the last pass stops at the taps (METHOD §4.8)."""
        timesteps = self._attention.timesteps
        feeds = {
            "latent": x,
            "timestep": np.full(len(x), timesteps[index], np.float32),
            "context": context,
        }
        is_last = index == len(timesteps) - 1
        return self._run("unet_taps" if is_last else "unet", feeds, rows)

    def _step(self, x: Float, output: Float, index: int) -> Float:
        """Step from pass `index` to the next. All arrays [k, c, s, s].

        As released, the levels are those of the timesteps the UNet is fed, though the first latent is noised
        to `start_level` (METHOD §4.3).
        """
        now, following = self._attention.timesteps[index : index + 2]
        level = float(self._alphas[now])
        eps = predicted_noise(output, x, level, self._spec.prediction)
        return ddim_step(x, eps, level, float(self._alphas[following]))

    def _run(self, graph: str, feeds: dict[str, Array], rows: int = 1) -> dict[str, Array]:
        """Run a graph, at most `rows` rows at a time, and refuse values that are not finite."""
        session = self._sessions.open(graph)
        outputs = run_batched(session, feeds, batch_size(session, rows))
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise EngineError(
                    f"graph {graph} returned {name} with values that are not finite, expected finite ones; "
                    "compare it with the reference: refdiff check BUNDLE"
                )
        return outputs


def _check(options: AttentionOptions) -> None:
    if options.softmax:
        raise InputError(
            "the options follow the paper's text and read per-head softmax attention, which no exported graph"
            " has; use --variant official or edge, or the torch reference"
        )
    if not options.timesteps:
        raise InputError("got no timesteps, expected at least one pass; use the timesteps of a variant")


def _paired(unconditional: Float | None, conditional: Float) -> Float:
    """Put the shared row [1, …] before each phrase's row of [k, …]: [2k, …]; [k, …] where there is none."""
    if unconditional is None:
        return conditional
    shared = np.broadcast_to(unconditional, conditional.shape)
    return np.stack((shared, conditional), axis=1).reshape(-1, *conditional.shape[1:])


def _logits(passes: Sequence[Mapping[str, Float]], phrase: int) -> AttentionLogits:
    """Return one phrase's logits of all passes."""
    stacked = {name: np.stack([each[name][phrase] for each in passes]) for name in passes[0]}
    return AttentionLogits(
        taps=stacked["taps"], coarse=stacked.get("coarse_taps"), itself=stacked.get("self_taps")
    )


def _guided(paired: Float, branches: int, guidance: float) -> Float:
    """Guide each phrase's rows: [branches * k, …] -> [k, …]."""
    of_phrases = paired.reshape(-1, branches, *paired.shape[1:])
    return np.stack([guide(each, guidance) for each in of_phrases])
