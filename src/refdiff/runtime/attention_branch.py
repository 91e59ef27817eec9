"""Phrase -> attention maps: METHOD §4 over the diffusion graphs.

What depends on the picture alone, the unconditional first pass included, is computed once and kept as a
`LatentState`; a phrase then costs one conditional pass, plus a batch of two for every later pass.

Axes: c = latent channels, s = latent side, l = tapped layers, q = query cells, t = tokens, d = context width,
m = maps, g = grid side, k = phrases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refdiff.contracts.options import AttentionOptions
from refdiff.contracts.session import Array, Float, SessionFactory
from refdiff.contracts.spec import DiffusionSpec, Prediction
from refdiff.errors import EngineError, InputError
from refdiff.runtime.batching import TEXT_ROWS, UNET_ROWS, batch_size, run_batched
from refdiff.runtime.heatmap import guided_branches, normalised_maps
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.resize import Picture, diffusion_input
from refdiff.runtime.schedule import add_noise, alphas_cumprod, ddim_step, draw
from refdiff.runtime.tokenizer import Tokenizer

LOGVAR_RANGE = (-30.0, 20.0)
"""Source: diffusers, DiagonalGaussianDistribution."""

PROMPT_SUFFIX = ", "
"""What the release writes behind the phrase."""


@dataclass(frozen=True)
class LatentState:
    """The diffusion branch's share of a picture; any number of phrases use it."""

    noised: Float
    """[1, c, s, s], at level `start_level`."""
    empty_context: Float | None
    """[1, t, d], of the unconditional prompt; None at guidance 1, which does not look at it."""
    eps: Float | None
    """[1, c, s, s], what the UNet predicted in the unconditional first pass, noise or velocity; None where it
    is the only pass."""
    taps: Float | None
    """[1, l, q, t], of the same pass; None at guidance 1."""


def encode_latent(
    sessions: SessionFactory, spec: DiffusionSpec, options: AttentionOptions, seed: int, image: Picture
) -> Float:
    """The picture's clean latent z0 (METHOD §4.2).

    Args:
        sessions: opens `vae_encoder`.
        spec: the model's sizes.
        options: posterior sample or mean.
        seed: of the posterior's draw.
        image: [y, x, 3].

    Returns:
        [1, c, s, s].
    """
    moments = _run(sessions, "vae_encoder", {"image": diffusion_input(image, spec.image_size)})["moments"]
    mean, logvar = np.split(moments, 2, axis=1)  # [1, c, s, s] each
    if options.sample_posterior:
        posterior, _ = draw(seed, mean.shape)
        mean = mean + np.exp(0.5 * np.clip(logvar, *LOGVAR_RANGE)) * posterior
    return np.asarray(spec.scaling_factor * mean, np.float32)


def latent_state(
    sessions: SessionFactory,
    spec: DiffusionSpec,
    options: AttentionOptions,
    tokenizer: Tokenizer,
    seed: int,
    image: Picture,
) -> LatentState:
    """Everything that depends on the picture alone.

    Args:
        sessions: opens `vae_encoder`, `sd_text`, and `unet` or `unet_taps`.
        spec: the model's sizes.
        options: the passes.
        tokenizer: of the bundle.
        seed: of the posterior's draw and the noise.
        image: [y, x, 3].

    Raises:
        InputError: the options ask for what the graphs do not expose.
        EngineError: a graph returned values that are not finite.
    """
    _check_options(options)
    clean = encode_latent(sessions, spec, options, seed, image)
    _, noise = draw(seed, clean.shape)
    noised = add_noise(clean, noise, float(alphas_cumprod(spec)[options.start_level]))
    if options.guidance == 1:
        return LatentState(noised=noised, empty_context=None, eps=None, taps=None)
    context = _contexts(sessions, spec, tokenizer, [""])
    eps, taps = _pass(sessions, options, 0, noised, context)
    return LatentState(noised=noised, empty_context=context, eps=eps, taps=taps)


def attend(
    sessions: SessionFactory,
    spec: DiffusionSpec,
    options: AttentionOptions,
    tokenizer: Tokenizer,
    state: LatentState,
    phrase: Phrase,
) -> Float:
    """The maps of one phrase: see `attend_each`.

    Returns:
        [m, g, g], 0..1.
    """
    return next(attend_each(sessions, spec, options, tokenizer, state, [phrase]))


def attend_each(
    sessions: SessionFactory,
    spec: DiffusionSpec,
    options: AttentionOptions,
    tokenizer: Tokenizer,
    state: LatentState,
    phrases: Sequence[Phrase],
    rows: int = UNET_ROWS,
) -> Iterator[Float]:
    """The maps of each phrase, of every tapped layer and pass (METHOD §4.3 to §4.5).

    Args:
        sessions: opens `sd_text`, `unet_taps`, and `unet` where there is more than one pass.
        spec: the model's sizes.
        options: the same ones the state was made with.
        tokenizer: of the bundle.
        state: of the picture.
        phrases: such as passed `Tokenizer.check_length`.
        rows: most of a UNet call; later passes take two for a phrase.

    Yields:
        For each phrase [m, g, g], 0..1, passes in order; `attention.heat_map` puts them on the picture. The
        UNet runs as they are taken.
    """
    _check_options(options)
    prompts = [phrase.text + PROMPT_SUFFIX for phrase in phrases]
    contexts = _contexts(sessions, spec, tokenizer, prompts)  # [k, t, d]
    columns = [tokenizer.focus_indices(phrase, options.focus) for phrase in phrases]
    for start in range(0, len(phrases), rows):
        some = slice(start, start + rows)
        yield from _maps(sessions, spec, options, state, contexts[some], columns[some], rows)


def _maps(
    sessions: SessionFactory,
    spec: DiffusionSpec,
    options: AttentionOptions,
    state: LatentState,
    contexts: Float,
    columns: Sequence[Sequence[int]],
    rows: int,
) -> list[Float]:
    """The maps [m, g, g] of the phrases of these contexts [k, t, d], read at each phrase's columns."""
    alphas = alphas_cumprod(spec)
    both = _paired(state.empty_context, contexts)  # [2k, t, d]; [k, t, d] at guidance 1
    branches = len(both) // len(contexts)

    latent = np.repeat(state.noised, len(contexts), axis=0)  # [k, c, s, s]
    maps: list[list[Float]] = [[] for _ in contexts]
    for index in range(len(options.timesteps)):
        if index == 0:
            eps, taps = _pass(sessions, options, 0, latent, contexts, rows)  # conditional alone
            eps = None if eps is None else _paired(state.eps, eps)  # [2k, c, s, s]
            taps = _paired(state.taps, taps)  # [2k, l, q, t]
        else:
            repeated = np.repeat(latent, branches, axis=0)
            eps, taps = _pass(sessions, options, index, repeated, both, rows)
        for i, logits in enumerate(_guided(taps, branches, options.guidance)):
            maps[i].append(normalised_maps(logits, columns[i], spec.tap_size))
        if eps is not None:
            told, following = options.timesteps[index : index + 2]
            guided = _guided(eps, branches, options.guidance)
            # The release's off-by-one: the latent is one level noisier than the UNet and the step are told.
            level = float(alphas[told])
            noise = predicted_noise(guided, latent, level, spec.prediction)
            latent = ddim_step(latent, noise, level, float(alphas[following]))
    return [np.concatenate(of_phrase) for of_phrase in maps]


def predicted_noise(output: Float, noisy: Float, alpha: float, prediction: Prediction) -> Float:
    """The noise a UNet's output stands for.

    A velocity v = sqrt(a)·eps - sqrt(1 - a)·x0 of x = sqrt(a)·x0 + sqrt(1 - a)·eps gives
    eps = sqrt(a)·v + sqrt(1 - a)·x. Source: Salimans & Ho 2022, arXiv 2202.00512, section 4. It is linear in
    v, and guidance's weights sum to 1, so a guided velocity gives the guided noise.

    Args:
        output: of the UNet, [k, c, s, s].
        noisy: x, the latent it was fed, of the same shape.
        alpha: the level it was told.
        prediction: what it was trained to predict.

    Returns:
        eps, of the same shape.
    """
    if prediction == "epsilon":
        return output
    return np.asarray(math.sqrt(alpha) * output + math.sqrt(1.0 - alpha) * noisy, np.float32)


def _check_options(options: AttentionOptions) -> None:
    if options.softmax:
        raise InputError(
            "got a variant that reads softmax attention, which no exported graph exposes; "
            "use the variant official or edge here, and the torch reference for paper"
        )
    if not options.timesteps:
        raise InputError("got no timesteps, expected at least one pass; use the timesteps of a variant")


def _contexts(
    sessions: SessionFactory, spec: DiffusionSpec, tokenizer: Tokenizer, prompts: Sequence[str]
) -> Float:
    """The UNet's context of each prompt: [k, t, d]."""
    ids = np.stack([tokenizer.diffusion_ids(prompt, spec.padding) for prompt in prompts])
    return _run(sessions, "sd_text", {"ids": ids}, TEXT_ROWS)["context"]


def _paired(unconditional: Float | None, conditional: Float) -> Float:
    """[1, …] and [k, …] -> [2k, …]: before each phrase's row the one that all share, if there is one."""
    if unconditional is None:
        return conditional
    shared = np.broadcast_to(unconditional, conditional.shape)
    return np.stack((shared, conditional), axis=1).reshape(-1, *conditional.shape[1:])


def _guided(paired: Float, branches: int, guidance: float) -> Float:
    """[branches * k, …] -> [k, …]."""
    of_phrases = paired.reshape(-1, branches, *paired.shape[1:])
    return np.stack([guided_branches(each, guidance) for each in of_phrases])


def _pass(
    sessions: SessionFactory,
    options: AttentionOptions,
    index: int,
    latent: Float,
    context: Float,
    rows: int = UNET_ROWS,
) -> tuple[Float | None, Float]:
    """UNet pass number `index`: what it predicts, and the taps. The last pass stops at the taps."""
    timestep = np.full(len(latent), options.timesteps[index], np.float32)
    feeds = {"latent": latent, "timestep": timestep, "context": context}
    is_last = index == len(options.timesteps) - 1
    graph = "unet_taps" if is_last else "unet"
    outputs = _run(sessions, graph, feeds, rows)
    return None if is_last else outputs["eps"], outputs["taps"]


def _run(sessions: SessionFactory, graph: str, feeds: dict[str, Array], rows: int = 1) -> dict[str, Array]:
    session = sessions.open(graph)
    outputs = run_batched(session, feeds, batch_size(session, rows))
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise EngineError(
                f"graph {graph} returned {name} with values that are not finite, expected finite ones; "
                "compare it with the reference: refdiff check BUNDLE"
            )
    return outputs
