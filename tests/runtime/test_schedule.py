import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.spec import DiffusionSpec
from refdiff.runtime.schedule import add_noise, alphas_cumprod, ddim_step, draw

SPEC = DiffusionSpec(
    image_size=1024,
    vae_factor=8,
    latent_channels=4,
    scaling_factor=0.18215,
    context_width=768,
    tapped_layers=("mid",),
    tap_size=32,
    cut_after="mid",
)
LATENT = (1, 4, 3, 5)


@pytest.mark.parametrize(("level", "alpha"), [(101, 0.892980537), (51, 0.950524322), (1, 0.998296028)])
def test_the_levels_are_those_of_the_method(level: int, alpha: float) -> None:
    assert alphas_cumprod(SPEC)[level] == pytest.approx(alpha, abs=5e-10)


def test_the_schedule_falls_from_almost_clean_to_almost_noise() -> None:
    alphas = alphas_cumprod(SPEC)
    assert alphas.shape == (1000,)
    assert alphas.dtype == np.float64
    assert (np.diff(alphas) < 0).all()
    assert 0 < alphas[-1] < 0.01 < 0.99 < alphas[0] < 1


@pytest.mark.needs_torch
def test_the_schedule_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.0120, beta_schedule="scaled_linear").alphas_cumprod
    np.testing.assert_allclose(alphas_cumprod(SPEC), theirs.numpy(), atol=1e-6)


def test_noise_is_weighted_by_the_square_roots_of_the_level() -> None:
    clean, noise = draw(0, LATENT)
    noised = add_noise(clean, noise, 0.892980537)
    assert noised.dtype == np.float32
    np.testing.assert_allclose(noised, 0.944976 * clean + 0.327138 * noise, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_step_told_the_true_noise_lands_on_the_next_level(seed: int, now: float, following: float) -> None:
    clean, noise = draw(seed, LATENT)
    stepped = ddim_step(add_noise(clean, noise, now), noise, now, following)
    assert stepped.dtype == np.float32
    np.testing.assert_allclose(stepped, add_noise(clean, noise, following), atol=2e-4)


def test_one_seed_draws_the_same_numbers_and_two_seeds_do_not() -> None:
    first, again, other = draw(7, LATENT), draw(7, LATENT), draw(8, LATENT)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()
    assert (first[0] != first[1]).any()


def test_draws_are_float32_standard_normals() -> None:
    for values in draw(0, (1, 4, 64, 48)):
        assert values.dtype == np.float32
        assert abs(float(values.mean())) < 0.05
        assert float(values.std()) == pytest.approx(1.0, abs=0.05)
