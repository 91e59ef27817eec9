"""Arithmetic of the attention branch: noise levels, guidance, and logits to a heatmap (METHOD §4.3 to §4.6).

A level is a cumulative alpha, 0..1: 1 is a clean latent. Levels are float64, latents and maps float32.

Axes: l = tapped layers, q = query cells = g*g, rows first, g = grid side, t = tokens, m = maps = layers x
passes, y/x = image rows/columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Array, Float
from refdiff.contracts.spec import DiffusionSpec, Prediction
from refdiff.runtime.resize import square_offset, upsample_bilinear, upsample_levels

EPS = 1e-8
"""Added to the denominator of every min-max: a flat map becomes zeros (METHOD §9)."""

LOGVAR_RANGE = (-30.0, 20.0)
"""Bounds of the posterior's log variance. Source: diffusers, DiagonalGaussianDistribution."""


def draw_noise(seed: int, shape: tuple[int, ...]) -> tuple[Float, Float]:
    """Draw the random numbers of the attention branch; the runtime and the reference draw the same ones.

    Args:
        seed: the options' seed.
        shape: the latent's shape.

    Returns:
        Standard normals for the posterior sample, then for the noise. Both are always drawn, so the noise is
        the same where no posterior is sampled.
    """
    rng = np.random.default_rng(seed)
    posterior = rng.standard_normal(shape, dtype=np.float32)
    return posterior, rng.standard_normal(shape, dtype=np.float32)


def clean_latent(moments: Float, posterior_noise: Float | None, scaling_factor: float) -> Float:
    """Return the clean latent z0 of the VAE's moments (METHOD §4.2).

    Args:
        moments: [1, 2c, s, s], the posterior's mean and log variance.
        posterior_noise: [1, c, s, s] standard normals; None takes the mean.
        scaling_factor: of the model's spec.

    Returns:
        [1, c, s, s].
    """
    mean, logvar = np.split(moments, 2, axis=1)  # [1, c, s, s] each
    if posterior_noise is not None:
        mean = mean + np.exp(0.5 * np.clip(logvar, *LOGVAR_RANGE)) * posterior_noise
    return np.asarray(scaling_factor * mean, np.float32)


def alphas_cumprod(spec: DiffusionSpec) -> NDArray[np.float64]:
    """Return the levels of the scaled-linear schedule: [train_timesteps], decreasing."""
    root_betas = np.linspace(math.sqrt(spec.beta_start), math.sqrt(spec.beta_end), spec.train_timesteps)
    return np.cumprod(1.0 - root_betas**2, dtype=np.float64)


def add_noise(clean: Float, noise: Float, alpha: float) -> Float:
    """Return a clean latent noised to level `alpha`; all arrays have one shape."""
    return np.asarray(math.sqrt(alpha) * clean + math.sqrt(1.0 - alpha) * noise, np.float32)


def ddim_step(noisy: Float, eps: Float, alpha_now: float, alpha_next: float) -> Float:
    """Take one deterministic DDIM step (eta = 0).

    Args:
        noisy: the latent, taken to be at level `alpha_now`.
        eps: the noise predicted in it, of the same shape.
        alpha_now: level the clean latent is computed from.
        alpha_next: level of the result.

    Returns:
        The next latent, of the same shape.
    """
    clean = (noisy - math.sqrt(1.0 - alpha_now) * eps) / math.sqrt(alpha_now)
    return add_noise(np.asarray(clean, np.float32), eps, alpha_next)


def predicted_noise(output: Float, noisy: Float, alpha: float, prediction: Prediction) -> Float:
    """Return the noise that a UNet's output stands for.

    A velocity v = sqrt(a)·eps - sqrt(1 - a)·x0 of x = sqrt(a)·x0 + sqrt(1 - a)·eps gives
    eps = sqrt(a)·v + sqrt(1 - a)·x. Source: Salimans & Ho 2022, arXiv 2202.00512, section 4. It is linear in
    v, and guidance's weights sum to 1, so a guided velocity gives the guided noise.

    Args:
        output: of the UNet, [k, c, s, s].
        noisy: x, the latent it was fed, of the same shape.
        alpha: the level of the timestep it was fed.
        prediction: what it was trained to predict.

    Returns:
        eps, of the same shape.
    """
    if prediction == "epsilon":
        return output
    return np.asarray(math.sqrt(alpha) * output + math.sqrt(1.0 - alpha) * noisy, np.float32)


def guide(branches: Float, guidance: float) -> Float:
    """Return U + guidance (C - U), of logits or of predictions.

    Args:
        branches: [2, ...], the unconditional one first; or [1, ...], the conditional one alone, which is the
            result at guidance 1.
        guidance: 9 in the release.

    Returns:
        [...].
    """
    if len(branches) == 1:
        return np.asarray(branches[0])
    unconditional, conditional = branches
    guided: Float = unconditional + np.float32(guidance) * (conditional - unconditional)
    return guided


def normalize_maps(logits: Float, token_indices: Sequence[int], grid_side: int, eps: float = EPS) -> Float:
    """Return the chosen tokens' columns as maps, each scaled to 0..1.

    Args:
        logits: [l, q, t].
        token_indices: the columns that are averaged.
        grid_side: g.
        eps: added to each map's range.

    Returns:
        [l, g, g], rows = y. A flat map is zero.
    """
    columns = logits[:, :, list(token_indices)].mean(axis=2, dtype=np.float32)  # [l, q]
    return scale_maps(columns.reshape(-1, grid_side, grid_side), eps)


def share_maps(logits: Float, own: Sequence[int], others: Sequence[int], grid_side: int) -> Float:
    """Return maps of the share that some tokens have in a softmax over them and others (METHOD §10.8).

    Args:
        logits: [l, q, t].
        own: the columns whose shares are added.
        others: the columns that they compete with.
        grid_side: g.

    Returns:
        [l, g, g], rows = y, each scaled to 0..1.
    """
    columns = logits[:, :, [*own, *others]].astype(np.float32)  # [l, q, own and others]
    weights = np.exp(columns - columns.max(axis=2, keepdims=True))
    share = weights[:, :, : len(own)].sum(axis=2) / weights.sum(axis=2)  # [l, q]
    return scale_maps(share.reshape(-1, grid_side, grid_side))


def scale_maps(maps: Float, eps: float = EPS) -> Float:
    """Scale each of the maps [m, g, g] to 0..1; a flat map becomes zero."""
    low = maps.min(axis=(1, 2), keepdims=True)
    high = maps.max(axis=(1, 2), keepdims=True)
    scaled: Float = (maps - low) / (high - low + np.float32(eps))
    return scaled


def mean_map(maps: Float, weights: Sequence[float] | None = None, *, exact: bool = False) -> Array:
    """Return the mean of maps [m, g, g]: [g, g].

    Args:
        maps: 0..1.
        weights: of the maps, m of them; None: all equal.
        exact: in float64, as the release's; False: float32.
    """
    kind = np.float64 if exact else np.float32
    if weights is None:
        mean: Array = maps.mean(axis=0, dtype=kind)
    else:
        mean = np.average(maps, axis=0, weights=np.asarray(weights, np.float64)).astype(kind)
    return mean


def affinity(logits: Float) -> NDArray[np.float64]:
    """Return the mean self-attention of logits [p, l, q, q] (METHOD §10.12): [q, q], rows sum to 1.

    In float64: the rows are nearly equal, and so are the cells of a map that was multiplied by them.
    """
    rows = logits.reshape(-1, *logits.shape[2:]).astype(np.float64)  # [m, q, q]
    weights = np.exp(rows - rows.max(axis=2, keepdims=True))
    mean: NDArray[np.float64] = (weights / weights.sum(axis=2, keepdims=True)).mean(axis=0)
    return mean


def propagate(mean: Array, cells: NDArray[np.float64], times: int) -> Array:
    """Multiply a map [g, g] by an affinity [q, q] of its cells, then scale it to 0..1: [g, g]."""
    column = mean.reshape(-1)
    for _ in range(times):
        column = cells @ column
    spread: Array = scale_maps(column.reshape(1, *mean.shape))[0]
    return spread


def heatmap_on_image(mean: Array, size_yx: tuple[int, int], *, uint8_lanczos: bool) -> Float:
    """Return a map, resized to the image and scaled to 0..1.

    Args:
        mean: [g, g], 0..1, over the padded square.
        size_yx: the image's size in px.
        uint8_lanczos: resize through 8 bits with LANCZOS, as released; False: float bilinear.

    Returns:
        [y, x], 0..1.
    """
    side = max(size_yx)
    if uint8_lanczos:
        levels = upsample_levels((mean * 255.0).astype(np.uint8), side, size_yx)  # truncates, as released
        heatmap = levels.astype(np.float32)
        heatmap /= np.float32(255.0)
    else:
        top, left = square_offset(size_yx)
        window = (slice(top, top + size_yx[0]), slice(left, left + size_yx[1]))
        heatmap = upsample_bilinear(np.asarray(mean, np.float32), (side, side), window)
    low, high = heatmap.min(), heatmap.max()
    heatmap -= low
    heatmap /= high - low + np.float32(EPS)
    return heatmap
