import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.graphs import BLOCKED
from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.runtime.clip_inputs import (
    CLASS_BUCKETS,
    MAX_PAIRS,
    MAX_PATCHES,
    candidate_attention_mask,
    class_bucket,
    images_per_call,
    interpolate_positions,
    letterbox,
    masked_crop,
    open_attention_masks,
    pad_rows,
    patch_bucket,
    patch_buckets,
    patch_grid,
    resize_shorter_side,
    sample_on_grid,
    shrink_longer_side,
    to_patches,
)
from refdiff.runtime.spatial import ramp

CLIP = ClipSpec(image_size=32, patch_size=8, width=6, embed_dim=5)
GRIDS = st.tuples(st.integers(1, 40), st.integers(1, 40))


def _image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_crop_is_the_candidate_on_black_with_both_box_corners():
    image, mask = _image(9, 14), np.zeros((9, 14), dtype=np.bool_)
    mask[2:5, 3:8] = True
    mask[2, 3] = False
    crop = masked_crop(image, mask, np.array([3, 2, 7, 4]), ramp(None, 14))
    assert crop.shape == (3, 5, 3)
    assert crop[0, 0].tolist() == [0, 0, 0]
    assert np.array_equal(crop[1:], image[3:5, 3:8])


def test_the_ramp_weighs_a_crop_by_its_place_in_the_image():
    image, mask = np.full((4, 12, 3), 200, np.uint8), np.ones((4, 12), dtype=np.bool_)
    crop = masked_crop(image, mask, np.array([6, 0, 11, 3]), ramp("left", 12))
    assert crop[0, :, 0].tolist() == [int(200 * weight) for weight in np.linspace(1, 0, 8)[6:]] + [0] * 4


@given(st.integers(1, 90), st.integers(1, 90))
def test_the_shorter_side_gets_the_size_and_the_aspect_is_kept(height, width):
    resized = resize_shorter_side(_image(height, width), 32)
    assert min(resized.shape[:2]) == 32
    assert max(resized.shape[:2]) == int(32 * max(height, width) / min(height, width))


@pytest.mark.needs_torch
@pytest.mark.parametrize("size", [(40, 91), (91, 40), (17, 23), (300, 120), (64, 64)])
def test_the_resize_is_torchvisions_within_one_grey_level(size):
    import torch
    from torchvision.transforms import functional as vision

    image = _image(*size)
    theirs = vision.resize(torch.from_numpy(image).permute(2, 0, 1), [48], antialias=True)
    difference = resize_shorter_side(image, 48).astype(int) - theirs.permute(1, 2, 0).numpy().astype(int)
    assert np.abs(difference).max() <= 1


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_letterboxed_crop_is_square_and_centred(height, width):
    square = letterbox(np.full((height, width, 3), 255, np.uint8), 32)
    rows, columns = square[..., 0].any(axis=1), square[..., 0].any(axis=0)
    assert square.shape == (32, 32, 3)
    for filled in (rows, columns):
        before, after = filled.argmax(), filled[::-1].argmax()
        assert after - before in (0, 1)


def test_shrinking_never_enlarges_and_zero_leaves_the_image_alone():
    image = _image(30, 50)
    assert shrink_longer_side(image, 80, least=8) is image
    assert shrink_longer_side(image, 0, least=8) is image
    assert shrink_longer_side(image, 25, least=8).shape == (15, 25, 3)


def test_shrinking_a_strip_keeps_one_patch_of_height():
    assert shrink_longer_side(_image(10, 400), 100, least=8).shape == (8, 100, 3)


def test_what_does_not_fill_a_patch_is_ignored():
    image = _image(25, 39)
    assert patch_grid((25, 39), 8) == (3, 4)
    assert np.array_equal(to_patches(image, CLIP), to_patches(image[:24, :32], CLIP))


def test_patches_are_normalized():
    grey = np.full((8, 16, 3), 51, np.uint8)
    values = to_patches(grey, CLIP).reshape(2, 3, 64)
    expected = (0.2 - np.array(CLIP.pixel_mean)) / np.array(CLIP.pixel_std)
    assert np.allclose(values, expected[None, :, None], atol=1e-6)


@pytest.mark.needs_torch
def test_patches_times_flat_weights_are_the_convolution():
    import torch

    image, weights = _image(27, 44), torch.randn(6, 3, 8, 8)
    pixels = (image / 255 - np.array(CLIP.pixel_mean)) / np.array(CLIP.pixel_std)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(pixels).float().permute(2, 0, 1)[None], weights, stride=8
    )
    ours = to_patches(image, CLIP) @ weights.reshape(6, -1).numpy().T
    assert np.allclose(ours, theirs[0].flatten(1).T.numpy(), atol=1e-4)


def test_an_image_below_one_patch_is_refused():
    with pytest.raises(InputError, match="smaller than one CLIP patch"):
        patch_grid((7, 100), 8)


def test_a_full_hd_image_has_few_enough_patches():
    assert patch_grid((1080, 1920), 16) == (67, 120)


def test_the_training_grid_takes_the_table_as_it_is():
    table = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    assert interpolate_positions(table, (4, 4)) is table


def test_the_training_grid_under_an_image_that_is_not_square_is_interpolated():
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
    assert open_attention_masks([6], 6).shape == (1, 7, 7)
    assert not open_attention_masks([6], 6).any()


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
    batch = pad_rows([np.ones((1, 2), np.float32), np.full((3, 2), 2, np.float32)], 4)
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


def _clip(grid):
    return ClipSpec(image_size=16 * grid, patch_size=16, width=6, embed_dim=5)


def test_the_ladder_of_vit_b_16():
    expected = (196, 296, 392, 592, 784, 1176, 1568, 2352, 3136, 4704, 6272, 8192)
    assert patch_buckets(_clip(14)) == expected


@given(st.integers(1, 40))
def test_every_ladder_starts_at_the_training_grid_and_ends_at_the_most_patches(grid):
    ladder = patch_buckets(_clip(grid))
    assert (ladder[0], ladder[-1]) == (grid**2, MAX_PATCHES)
    assert list(ladder) == sorted(set(ladder))
    assert not any(count % 8 for count in ladder[1:])


@given(st.integers(1, 40), st.integers(1, MAX_PATCHES))
def test_a_count_is_padded_to_the_next_rung_and_by_at_most_half(grid, patches):
    bucket, ladder = patch_bucket(_clip(grid), patches), patch_buckets(_clip(grid))
    assert bucket == min(count for count in ladder if count >= patches)
    assert bucket < 1.5 * patches + 8 or bucket == grid**2


@pytest.mark.parametrize("grid", [7, 8, 14, 16, 24])
def test_the_training_grid_is_never_padded(grid):
    assert patch_bucket(_clip(grid), grid**2) == grid**2


@pytest.mark.parametrize(("classes", "bucket"), [(1, 1), (2, 16), (10, 16), (20, 32), (33, 64), (64, 64)])
def test_class_tokens_are_padded(classes, bucket):
    assert class_bucket(classes) == bucket
    assert bucket in CLASS_BUCKETS


@given(st.integers(1, MAX_PATCHES))
def test_a_call_takes_as_many_images_as_its_memory_allows_but_one_always(tokens):
    images = images_per_call(tokens)
    assert images >= 1
    assert images == 1 or images * tokens**2 <= MAX_PAIRS
    assert (images + 1) * tokens**2 > MAX_PAIRS
