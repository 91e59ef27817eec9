import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.graphs import BLOCKED
from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.runtime.patches import (
    candidate_attention_mask,
    interpolate_positions,
    open_attention_mask,
    open_attention_masks,
    padded_rows,
    patch_grid,
    sample_on_grid,
    to_patches,
)

CLIP = ClipSpec(image_size=32, patch_size=8, width=6, embed_dim=5)
GRIDS = st.tuples(st.integers(1, 40), st.integers(1, 40))


def _picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_what_does_not_fill_a_patch_is_ignored():
    image = _picture(25, 39)
    assert patch_grid((25, 39), 8) == (3, 4)
    assert np.array_equal(to_patches(image, CLIP), to_patches(image[:24, :32], CLIP))


def test_patches_are_normalised():
    grey = np.full((8, 16, 3), 51, np.uint8)
    values = to_patches(grey, CLIP).reshape(2, 3, 64)
    expected = (0.2 - np.array(CLIP.pixel_mean)) / np.array(CLIP.pixel_std)
    assert np.allclose(values, expected[None, :, None], atol=1e-6)


@pytest.mark.needs_torch
def test_patches_times_flat_weights_are_the_convolution():
    import torch

    image, weights = _picture(27, 44), torch.randn(6, 3, 8, 8)
    pixels = (image / 255 - np.array(CLIP.pixel_mean)) / np.array(CLIP.pixel_std)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(pixels).float().permute(2, 0, 1)[None], weights, stride=8
    )
    ours = to_patches(image, CLIP) @ weights.reshape(6, -1).numpy().T
    assert np.allclose(ours, theirs[0].flatten(1).T.numpy(), atol=1e-4)


def test_a_picture_below_one_patch_is_refused():
    with pytest.raises(InputError, match="smaller than one CLIP patch"):
        patch_grid((7, 100), 8)


def test_a_picture_with_too_many_patches_names_the_cure():
    with pytest.raises(InputError, match="--variant edge or shrink"):
        patch_grid((4000, 3000), 16)


def test_a_full_hd_picture_has_few_enough_patches():
    assert patch_grid((1080, 1920), 16) == (67, 120)


def test_the_training_grid_takes_the_table_as_it_is():
    table = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    assert interpolate_positions(table, (4, 4)) is table


def test_the_training_grid_under_a_picture_that_is_not_square_is_interpolated():
    table = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    assert not np.allclose(interpolate_positions(table, (4, 4), square=False), table)


@given(GRIDS)
def test_a_constant_table_stays_constant(grid):
    assert np.allclose(interpolate_positions(np.full((16, 2), 0.7, np.float32), grid), 0.7, atol=1e-6)


@pytest.mark.needs_torch
@given(GRIDS, st.sampled_from([2, 4, 7, 14]))
def test_positions_equal_torchs_bicubic(grid, side):
    import torch

    table = np.random.default_rng(1).normal(size=(side * side, 3)).astype(np.float32)
    cube = torch.from_numpy(table).reshape(1, side, side, 3).permute(0, 3, 1, 2)
    factors = tuple((count + 0.1) / side for count in grid)
    theirs = torch.nn.functional.interpolate(cube, scale_factor=factors, mode="bicubic")
    ours = interpolate_positions(table, grid, square=False)
    assert np.allclose(ours, theirs[0].flatten(1).T.numpy(), atol=1e-5)


@pytest.mark.needs_torch
@given(st.tuples(st.integers(1, 70), st.integers(1, 70)), GRIDS, st.integers(0, 99))
def test_masks_are_sampled_as_torchs_nearest(size, grid, seed):
    import torch

    masks = np.random.default_rng(seed).random((2, *size)) > 0.5
    theirs = torch.nn.functional.interpolate(torch.from_numpy(masks).float()[:, None], grid, mode="nearest")
    assert np.array_equal(sample_on_grid(masks, grid), theirs.flatten(1).numpy() > 0)


def test_class_tokens_see_themselves_and_their_own_patches():
    on_patches = np.array([[True, False, True], [False, False, False]])
    seen = candidate_attention_mask(on_patches) == 0
    assert seen.astype(int).tolist() == [
        [1, 0, 1, 0, 1],
        [0, 1, 0, 0, 0],  # a mask between the sampled pixels: its class token is alone
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]
    assert set(np.unique(candidate_attention_mask(on_patches))) == {np.float32(BLOCKED), np.float32(0)}


def test_the_plain_tower_blocks_nothing():
    assert open_attention_mask(6).shape == (7, 7)
    assert not open_attention_mask(6).any()


def test_padding_sees_nothing_but_finite_things_and_is_seen_by_nothing():
    on_patches = np.array([[True, False], [False, True]])
    seen = candidate_attention_mask(on_patches, classes=3, patches=4) == 0
    assert seen.astype(int).tolist() == [
        [1, 0, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],  # the padded class token is alone
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],  # a padded patch looks at real ones, so that it stays finite
        [0, 0, 0, 1, 1, 0, 0],
    ]


def test_each_crop_of_a_batch_hides_its_own_padding():
    seen = open_attention_masks([1, 3], 3) == 0
    assert seen.shape == (2, 4, 4)
    assert (seen == [[[True, True, False, False]], [[True] * 4]]).all()


def test_tables_of_unlike_lengths_become_one_batch():
    batch = padded_rows([np.ones((1, 2), np.float32), np.full((3, 2), 2, np.float32)], 4)
    assert batch.dtype == np.float32
    assert batch[..., 0].tolist() == [[1, 0, 0, 0], [2, 2, 2, 0]]


@pytest.mark.needs_torch
@pytest.mark.parametrize("side", [7, 14, 16])
@pytest.mark.parametrize("grid", [(14, 14), (14, 60), (60, 14), (30, 40), (67, 120)])
def test_positions_of_real_size_equal_torchs_bicubic(side, grid):
    import torch

    table = np.random.default_rng(2).normal(size=(side * side, 768)).astype(np.float32)
    cube = torch.from_numpy(table).reshape(1, side, side, 768).permute(0, 3, 1, 2)
    factors = tuple((count + 0.1) / side for count in grid)
    theirs = torch.nn.functional.interpolate(cube, scale_factor=factors, mode="bicubic")
    assert theirs.shape[2:] == grid
    ours = interpolate_positions(table, grid, square=False)
    error = np.abs(ours - theirs[0].flatten(1).T.numpy()).max()
    assert error <= 1e-5 * (table.max() - table.min())
