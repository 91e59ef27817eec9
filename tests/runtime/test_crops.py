import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.runtime.crops import letterbox, masked_crop, resize_shorter_side, shrink_longer_side
from refdiff.runtime.spatial import ramp


def _picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_crop_is_the_candidate_on_black_with_both_box_corners():
    image, mask = _picture(9, 14), np.zeros((9, 14), dtype=np.bool_)
    mask[2:5, 3:8] = True
    mask[2, 3] = False
    crop = masked_crop(image, mask, np.array([3, 2, 7, 4]), ramp(None, 14))
    assert crop.shape == (3, 5, 3)
    assert crop[0, 0].tolist() == [0, 0, 0]
    assert np.array_equal(crop[1:], image[3:5, 3:8])


def test_the_ramp_weighs_a_crop_by_its_place_in_the_picture():
    image, mask = np.full((4, 12, 3), 200, np.uint8), np.ones((4, 12), dtype=np.bool_)
    crop = masked_crop(image, mask, np.array([6, 0, 11, 3]), ramp("left", 12))
    assert crop[0, :, 0].tolist() == [int(200 * weight) for weight in np.linspace(1, 0, 8)[6:]] + [0] * 4


@given(st.integers(1, 90), st.integers(1, 90))
def test_the_shorter_side_gets_the_size_and_the_aspect_is_kept(height, width):
    resized = resize_shorter_side(_picture(height, width), 32)
    assert min(resized.shape[:2]) == 32
    assert max(resized.shape[:2]) == int(32 * max(height, width) / min(height, width))


@pytest.mark.needs_torch
@pytest.mark.parametrize("size", [(40, 91), (91, 40), (17, 23), (300, 120), (64, 64)])
def test_the_resize_is_torchvisions_within_one_grey_level(size):
    import torch
    from torchvision.transforms import functional as vision

    image = _picture(*size)
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


def test_shrinking_never_enlarges_and_zero_leaves_the_picture_alone():
    image = _picture(30, 50)
    assert shrink_longer_side(image, 80, least=8) is image
    assert shrink_longer_side(image, 0, least=8) is image
    assert shrink_longer_side(image, 25, least=8).shape == (15, 25, 3)


def test_shrinking_a_strip_keeps_one_patch_of_height():
    assert shrink_longer_side(_picture(10, 400), 100, least=8).shape == (8, 100, 3)
