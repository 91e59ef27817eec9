"""Diffusion's noise levels and the deterministic DDIM step (METHOD §4.3).

A level is a cumulative alpha, 0..1: 1 is a clean latent. Levels are float64, latents float32.

The random numbers of the diffusion branch: the device and the reference draw the same ones.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Float
from refdiff.contracts.spec import DiffusionSpec


def alphas_cumprod(spec: DiffusionSpec) -> NDArray[np.float64]:
    """The scaled-linear schedule: [train_timesteps], decreasing."""
    root_betas = np.linspace(math.sqrt(spec.beta_start), math.sqrt(spec.beta_end), spec.train_timesteps)
    return np.cumprod(1.0 - root_betas**2, dtype=np.float64)


def add_noise(clean: Float, noise: Float, alpha: float) -> Float:
    """A clean latent brought to level `alpha`; arrays of one shape."""
    return np.asarray(math.sqrt(alpha) * clean + math.sqrt(1.0 - alpha) * noise, np.float32)


def ddim_step(noisy: Float, eps: Float, alpha_now: float, alpha_next: float) -> Float:
    """One step without fresh noise (eta = 0).

    Args:
        noisy: the latent, taken to be at level `alpha_now`.
        eps: the noise predicted in it, of the same shape.
        alpha_now: level the clean latent is worked out from.
        alpha_next: level it is brought to.

    Returns:
        The next latent, of the same shape.
    """
    clean = (noisy - math.sqrt(1.0 - alpha_now) * eps) / math.sqrt(alpha_now)
    return add_noise(np.asarray(clean, np.float32), eps, alpha_next)


def draw(seed: int, shape: tuple[int, ...]) -> tuple[Float, Float]:
    """The posterior's draw, then the noise: the noise is the same where no posterior is drawn.

    Args:
        seed: the options' seed.
        shape: the latent's shape.

    Returns:
        Two arrays of standard normals.
    """
    rng = np.random.default_rng(seed)
    posterior = rng.standard_normal(shape, dtype=np.float32)
    return posterior, rng.standard_normal(shape, dtype=np.float32)
