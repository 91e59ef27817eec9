import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.graphs import POINTS_PER_BATCH
from refdiff.runtime.point_prompts import cold_points, grid_points, map_prompts, peak_points

SIZE = (48, 90)


def _hills(*hills, size_yx=SIZE):
    """A map with a round hill (y, x, height) at each place, px."""
    y, x = np.mgrid[: size_yx[0], : size_yx[1]]
    heights = [top * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / 50) for at_y, at_x, top in hills]
    return np.max(heights, axis=0).astype(np.float32)


def _px(points, size_yx=SIZE):
    return points * np.array(size_yx[::-1])


def test_points_lie_in_the_cells_middles_row_by_row():
    assert grid_points(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_peaks_lie_on_the_hills_highest_first():
    found = _px(peak_points(_hills((10, 20, 0.6), (30, 70, 1.0), (40, 10, 0.3)), 3))
    assert np.abs(found - np.array([[70, 30], [20, 10], [10, 40]])).max() < 2


def test_no_more_peaks_than_were_asked_for():
    heat = _hills((10, 20, 0.6), (30, 70, 1.0), (40, 10, 0.3))
    np.testing.assert_array_equal(peak_points(heat, 2), peak_points(heat, 3)[:2])


def test_a_hill_cut_off_by_the_edge_of_the_image_has_a_peak():
    (x, y), *_ = _px(peak_points(_hills((0, 89, 1.0)), 1))
    assert y < 2
    assert x > 87


def test_a_plateau_is_a_few_peaks_apart_from_each_other():
    found = _px(peak_points(np.ones(SIZE, np.float32), 16))
    distances = np.hypot(*(found[:, None] - found[None]).transpose(2, 0, 1))
    assert len(found) == 16
    assert distances[~np.eye(16, dtype=bool)].min() > 90 / 64


def test_the_grids_points_where_the_map_is_above_its_mean_follow_hottest_first():
    heat = np.tile(np.linspace(0, 1, 90, dtype=np.float32), (48, 1))
    prompts = map_prompts(heat, peaks=1, points_per_side=4)
    assert prompts[0, 0] > 0.98
    assert (prompts[1:, 0] > 0.5).all()
    assert prompts[1:, 0].tolist() == [0.875] * 4 + [0.625] * 4


def test_a_flat_map_has_peaks_and_no_warm_grid():
    assert len(map_prompts(np.zeros(SIZE, np.float32), peaks=4, points_per_side=8)) == 4


def test_prompts_fit_one_decoder_call_and_the_peaks_stay():
    heat = np.random.default_rng(0).random(SIZE, dtype=np.float32)
    prompts = map_prompts(heat, peaks=16, points_per_side=32)
    assert len(prompts) == POINTS_PER_BATCH
    np.testing.assert_array_equal(prompts[:16], peak_points(heat, 16))


@pytest.mark.slow
@pytest.mark.parametrize("size_yx", [(1, 1), (1, 200), (300, 7), (720, 1280)])
@given(st.integers(0, 2**32 - 1), st.integers(1, 16))
def test_prompts_lie_in_an_image_of_any_size(size_yx, seed, peaks):
    heat = np.random.default_rng(seed).random(size_yx, dtype=np.float32)
    prompts = map_prompts(heat, peaks=peaks, points_per_side=8)
    assert 1 <= len(prompts) <= POINTS_PER_BATCH
    assert (prompts > 0).all()
    assert (prompts < 1).all()


def test_cold_points_lie_where_the_map_is_cold_and_apart():
    heat = _hills((10, 20, 1.0))
    cold = cold_points(heat, 4, points_per_side=8)
    assert cold.shape == (4, 2)
    assert (heat[tuple(_px(cold)[:, ::-1].astype(int).T)] <= 0.3).all()
    apart = np.linalg.norm(cold[:, None] - cold, axis=2) + np.eye(4)
    assert apart.min() > 0.4
    np.testing.assert_array_equal(cold[:2], cold_points(heat, 2, points_per_side=8))


def test_cold_points_are_none_of_the_prompts():
    heat = _hills((10, 20, 1.0), (40, 70, 0.8))
    prompts = {tuple(point) for point in map_prompts(heat, peaks=2, points_per_side=8)}
    assert prompts.isdisjoint(map(tuple, cold_points(heat, 14, points_per_side=8)))


def test_a_map_without_cold_places_has_no_cold_points():
    assert cold_points(np.zeros(SIZE, np.float32), 4, points_per_side=8).shape == (0, 2)
    assert cold_points(np.full(SIZE, 0.9, np.float32), 4, points_per_side=8).shape == (0, 2)
    assert cold_points(_hills((10, 20, 1.0)), 0, points_per_side=8).shape == (0, 2)
