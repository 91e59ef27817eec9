import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from refdiff.contracts.session import Float
from refdiff.runtime.heatmap import guided_branches, heat_map, normalised_maps

GRID, TOKENS = 4, 6
finite = st.floats(-50, 50, width=32)


def _logits(seed: int = 0, layers: int = 3) -> Float:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((layers, GRID * GRID, TOKENS), dtype=np.float32)


def test_guidance_nine_is_nine_conditional_less_eight_unconditional() -> None:
    unconditional, conditional = _logits(0), _logits(1)
    guided = guided_branches(np.stack((unconditional, conditional)), 9.0)
    np.testing.assert_allclose(guided, 9 * conditional - 8 * unconditional, atol=1e-5)
    assert guided.dtype == np.float32


def test_guidance_one_is_the_conditional_branch() -> None:
    taps = np.stack((_logits(0), _logits(1)))
    np.testing.assert_allclose(guided_branches(taps, 1.0), taps[1], atol=1e-6)
    np.testing.assert_array_equal(guided_branches(taps[1:], 1.0), taps[1])


@given(hnp.arrays(np.float32, (2, GRID * GRID, TOKENS), elements=finite), st.integers(0, TOKENS - 1))
def test_every_map_is_finite_and_within_zero_and_one(logits: Float, token: int) -> None:
    maps = normalised_maps(logits, (token,), GRID)
    assert maps.shape == (2, GRID, GRID)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_a_flat_map_is_zero_not_nan() -> None:
    assert not normalised_maps(np.full((1, GRID * GRID, TOKENS), 3.0, np.float32), (2,), GRID).any()


def test_rows_of_a_map_are_rows_of_the_picture() -> None:
    logits = np.zeros((1, GRID * GRID, TOKENS), np.float32)
    logits[0, 1 * GRID + 3, 2] = 1.0
    maps = normalised_maps(logits, (2,), GRID)
    assert np.argwhere(maps[0] == 1).tolist() == [[1, 3]]


def test_several_tokens_are_averaged_before_the_stretch() -> None:
    logits = _logits()
    both = normalised_maps(logits, (1, 4), GRID)
    mean = (logits[..., 1] + logits[..., 4]) / 2
    np.testing.assert_allclose(both, normalised_maps(mean[..., None], (0,), GRID), atol=1e-6)


@pytest.mark.parametrize("uint8_lanczos", [True, False])
@given(
    maps=hnp.arrays(np.float32, (3, GRID, GRID), elements=st.floats(0, 1, width=32)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_heat_has_the_size_of_the_picture_and_stays_within_zero_and_one(
    uint8_lanczos: bool, maps: Float, size: tuple[int, int]
) -> None:
    heat = heat_map(maps, size, uint8_lanczos=uint8_lanczos)
    assert heat.shape == size
    assert heat.dtype == np.float32
    assert np.isfinite(heat).all()
    assert heat.min() >= 0
    assert heat.max() <= 1


@pytest.mark.parametrize("uint8_lanczos", [True, False])
def test_heat_lies_where_the_map_is_hot_on_a_wide_picture(uint8_lanczos: bool) -> None:
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, 3, 6] = 1.0  # on a 32x64 picture's square of 64: rows 24..31, columns 48..55
    heat = heat_map(maps, (32, 64), uint8_lanczos=uint8_lanczos)
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert 24 - 16 <= y < 32 - 16
    assert 48 <= x < 56


def test_the_released_heat_goes_through_eight_truncated_bits_and_lanczos() -> None:
    maps = np.random.default_rng(0).random((10, 32, 32), dtype=np.float32)
    levels = Image.fromarray((maps.mean(axis=0) * 255).astype(np.uint8))
    square = np.asarray(levels.resize((90, 90), Image.Resampling.LANCZOS)) / 255.0
    wanted = square[15:75, :]
    wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min() + 1e-8)
    np.testing.assert_allclose(heat_map(maps, (60, 90), uint8_lanczos=True), wanted, atol=1e-6)


@pytest.mark.parametrize("uint8_lanczos", [True, False])
def test_flat_maps_give_cold_heat(uint8_lanczos: bool) -> None:
    maps = np.full((2, GRID, GRID), 0.5, np.float32)
    np.testing.assert_allclose(heat_map(maps, (9, 14), uint8_lanczos=uint8_lanczos), 0, atol=1e-5)
