"""The random numbers of the diffusion branch: the device and the reference draw the same ones."""

from __future__ import annotations

import numpy as np

from refdiff.contracts.session import Float


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
