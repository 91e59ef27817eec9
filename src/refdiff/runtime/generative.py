"""Phrase -> attention maps: METHOD §4 over the diffusion graphs.

What depends on the picture alone, the unconditional first pass included, is computed once and kept as a
`LatentState`; a phrase then costs one conditional pass, plus a batch of two for every later pass.

Axes: c = latent channels, s = latent side, l = tapped layers, q = query cells, t = tokens, d = context width,
m = maps, g = grid side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refdiff.contracts.options import AttentionOptions
from refdiff.contracts.session import Array, Float, SessionFactory
from refdiff.contracts.spec import DiffusionSpec, Prediction
from refdiff.errors import EngineError, InputError
from refdiff.runtime.attention import guided_branches, normalised_maps
from refdiff.runtime.geometry import Picture, diffusion_input
from refdiff.runtime.noise import draw
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.schedule import add_noise, alphas_cumprod, ddim_step
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
    context = _context(sessions, spec, tokenizer, "")
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
    """The maps of one phrase, of every tapped layer and pass (METHOD §4.3 to §4.5).

    Args:
        sessions: opens `sd_text`, `unet_taps`, and `unet` where there is more than one pass.
        spec: the model's sizes.
        options: the same ones the state was made with.
        tokenizer: of the bundle.
        state: of the picture.
        phrase: one that passed `Tokenizer.check_length`.

    Returns:
        [m, g, g], 0..1, passes in order; `attention.heat_map` puts them on the picture.
    """
    _check_options(options)
    tokens = tokenizer.focus_indices(phrase, options.focus)
    context = _context(sessions, spec, tokenizer, phrase.text + PROMPT_SUFFIX)
    contexts = _both(state.empty_context, context)  # [2, t, d]; [1, t, d] at guidance 1
    alphas = alphas_cumprod(spec)

    eps, taps = _pass(sessions, options, 0, state.noised, context)  # conditional alone
    eps = None if eps is None else _both(state.eps, eps)
    taps = _both(state.taps, taps)  # [2, l, q, t]
    latent, maps = state.noised, []
    for index in range(len(options.timesteps)):
        if index:
            eps, taps = _pass(sessions, options, index, np.repeat(latent, len(contexts), axis=0), contexts)
        maps.append(normalised_maps(guided_branches(taps, options.guidance), tokens, spec.tap_size))
        if eps is not None:
            told, following = options.timesteps[index : index + 2]
            guided = guided_branches(eps, options.guidance)[None]
            # The release's off-by-one: the latent is one level noisier than the UNet and the step are told.
            level = float(alphas[told])
            noise = predicted_noise(guided, latent, level, spec.prediction)
            latent = ddim_step(latent, noise, level, float(alphas[following]))
    return np.concatenate(maps)


def predicted_noise(output: Float, noisy: Float, alpha: float, prediction: Prediction) -> Float:
    """The noise a UNet's output stands for.

    A velocity v = sqrt(a)·eps - sqrt(1 - a)·x0 of x = sqrt(a)·x0 + sqrt(1 - a)·eps gives
    eps = sqrt(a)·v + sqrt(1 - a)·x. Source: Salimans & Ho 2022, arXiv 2202.00512, section 4. It is linear in
    v, and guidance's weights sum to 1, so a guided velocity gives the guided noise.

    Args:
        output: of the UNet, [1, c, s, s].
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
            "got a profile that reads softmax attention, which no exported graph exposes; "
            "use the profile official or edge here, and the torch reference for paper"
        )
    if not options.timesteps:
        raise InputError("got no timesteps, expected at least one pass; use the timesteps of a profile")


def _both(empty: Float | None, said: Float) -> Float:
    """The unconditional branch, where there is one, before the conditional one: [2 or 1, ...]."""
    return said if empty is None else np.concatenate((empty, said))


def _context(sessions: SessionFactory, spec: DiffusionSpec, tokenizer: Tokenizer, prompt: str) -> Float:
    """The UNet's context of a prompt: [1, t, d]."""
    ids = tokenizer.diffusion_ids(prompt, spec.padding)
    return _run(sessions, "sd_text", {"ids": ids[None]})["context"]


def _pass(
    sessions: SessionFactory, options: AttentionOptions, index: int, latent: Float, context: Float
) -> tuple[Float | None, Float]:
    """UNet pass number `index`: what it predicts, and the taps. The last pass stops at the taps."""
    timestep = np.full(len(latent), options.timesteps[index], np.float32)
    feeds = {"latent": latent, "timestep": timestep, "context": context}
    if index == len(options.timesteps) - 1:
        return None, _run(sessions, "unet_taps", feeds)["taps"]
    outputs = _run(sessions, "unet", feeds)
    return outputs["eps"], outputs["taps"]


def _run(sessions: SessionFactory, graph: str, feeds: dict[str, Array]) -> dict[str, Array]:
    outputs = sessions.open(graph).run(feeds)
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise EngineError(
                f"graph {graph} returned {name} with values that are not finite, expected finite ones; "
                "compare it with the reference: refdiff check BUNDLE"
            )
    return outputs
