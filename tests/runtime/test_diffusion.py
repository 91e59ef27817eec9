import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from refdiff.contracts.session import Float
from refdiff.contracts.spec import DiffusionSpec
from refdiff.runtime.diffusion import (
    add_noise,
    alphas_cumprod,
    ddim_step,
    draw_noise,
    guide,
    heatmap_on_image,
    mean_map,
    normalize_maps,
    predicted_noise,
)

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

GRID, TOKENS = 4, 6
finite = st.floats(-50, 50, width=32)


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
    clean, noise = draw_noise(0, LATENT)
    noised = add_noise(clean, noise, 0.892980537)
    assert noised.dtype == np.float32
    np.testing.assert_allclose(noised, 0.944976 * clean + 0.327138 * noise, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_step_with_the_true_noise_lands_on_the_next_level(seed: int, now: float, following: float) -> None:
    clean, noise = draw_noise(seed, LATENT)
    stepped = ddim_step(add_noise(clean, noise, now), noise, now, following)
    assert stepped.dtype == np.float32
    np.testing.assert_allclose(stepped, add_noise(clean, noise, following), atol=2e-4)


def test_one_seed_draws_the_same_numbers_and_two_seeds_do_not() -> None:
    first, again, other = draw_noise(7, LATENT), draw_noise(7, LATENT), draw_noise(8, LATENT)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()
    assert (first[0] != first[1]).any()


def test_draws_are_float32_standard_normals() -> None:
    for values in draw_noise(0, (1, 4, 64, 48)):
        assert values.dtype == np.float32
        assert abs(float(values.mean())) < 0.05
        assert float(values.std()) == pytest.approx(1.0, abs=0.05)


def _logits(seed: int = 0, layers: int = 3) -> Float:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((layers, GRID * GRID, TOKENS), dtype=np.float32)


def test_guidance_nine_is_nine_conditional_less_eight_unconditional() -> None:
    unconditional, conditional = _logits(0), _logits(1)
    guided = guide(np.stack((unconditional, conditional)), 9.0)
    np.testing.assert_allclose(guided, 9 * conditional - 8 * unconditional, atol=1e-5)
    assert guided.dtype == np.float32


def test_guidance_one_is_the_conditional_branch() -> None:
    taps = np.stack((_logits(0), _logits(1)))
    np.testing.assert_allclose(guide(taps, 1.0), taps[1], atol=1e-6)
    np.testing.assert_array_equal(guide(taps[1:], 1.0), taps[1])


@given(hnp.arrays(np.float32, (2, GRID * GRID, TOKENS), elements=finite), st.integers(0, TOKENS - 1))
def test_every_map_is_finite_and_within_zero_and_one(logits: Float, token: int) -> None:
    maps = normalize_maps(logits, (token,), GRID)
    assert maps.shape == (2, GRID, GRID)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_a_flat_map_is_zero_not_nan() -> None:
    assert not normalize_maps(np.full((1, GRID * GRID, TOKENS), 3.0, np.float32), (2,), GRID).any()


def test_rows_of_a_map_are_rows_of_the_image() -> None:
    logits = np.zeros((1, GRID * GRID, TOKENS), np.float32)
    logits[0, 1 * GRID + 3, 2] = 1.0
    maps = normalize_maps(logits, (2,), GRID)
    assert np.argwhere(maps[0] == 1).tolist() == [[1, 3]]


def test_several_tokens_are_averaged_before_they_are_scaled() -> None:
    logits = _logits()
    both = normalize_maps(logits, (1, 4), GRID)
    mean = (logits[..., 1] + logits[..., 4]) / 2
    np.testing.assert_allclose(both, normalize_maps(mean[..., None], (0,), GRID), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("uint8_lanczos", [True, False])
@given(
    maps=hnp.arrays(np.float32, (3, GRID, GRID), elements=st.floats(0, 1, width=32)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_heat_has_the_size_of_the_image_and_stays_within_zero_and_one(
    uint8_lanczos: bool, maps: Float, size: tuple[int, int]
) -> None:
    heat = heatmap_on_image(mean_map(maps), size, uint8_lanczos=uint8_lanczos)
    assert heat.shape == size
    assert heat.dtype == np.float32
    assert np.isfinite(heat).all()
    assert heat.min() >= 0
    assert heat.max() <= 1


@pytest.mark.parametrize("uint8_lanczos", [True, False])
def test_heat_lies_where_the_map_is_hot_on_a_wide_image(uint8_lanczos: bool) -> None:
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, 3, 6] = 1.0  # on a 32x64 image's square of 64: rows 24..31, columns 48..55
    heat = heatmap_on_image(mean_map(maps), (32, 64), uint8_lanczos=uint8_lanczos)
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert 24 - 16 <= y < 32 - 16
    assert 48 <= x < 56


def test_the_released_heat_goes_through_eight_truncated_bits_and_lanczos() -> None:
    maps = np.random.default_rng(0).random((10, 32, 32), dtype=np.float32)
    levels = Image.fromarray((maps.mean(axis=0) * 255).astype(np.uint8))
    square = np.asarray(levels.resize((90, 90), Image.Resampling.LANCZOS)) / 255.0
    wanted = square[15:75, :]
    wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min() + 1e-8)
    np.testing.assert_allclose(
        heatmap_on_image(mean_map(maps, exact=True), (60, 90), uint8_lanczos=True), wanted, atol=1e-6
    )


@pytest.mark.parametrize("uint8_lanczos", [True, False])
def test_flat_maps_give_a_zero_heatmap(uint8_lanczos: bool) -> None:
    maps = np.full((2, GRID, GRID), 0.5, np.float32)
    np.testing.assert_allclose(
        heatmap_on_image(mean_map(maps), (9, 14), uint8_lanczos=uint8_lanczos), 0, atol=1e-5
    )


def test_a_velocity_is_solved_for_the_noise_it_was_made_of() -> None:
    clean, noise = np.random.default_rng(5).standard_normal((2, *LATENT)).astype(np.float32)
    noisy = np.float32(0.8) * clean + np.float32(0.6) * noise
    velocity = np.float32(0.8) * noise - np.float32(0.6) * clean
    found = predicted_noise(velocity, noisy, 0.64, "v_prediction")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, noise, atol=1e-6)
    assert predicted_noise(noise, noisy, 0.64, "epsilon") is noise
