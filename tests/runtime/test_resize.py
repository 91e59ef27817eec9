"""SAM's two resizes in one equal the two, one after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.runtime.resize import MaskResize, sam_size, upsample_bilinear

SIDES = st.integers(1, 90)


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from([(4, 16), (8, 24), (16, 64)]), st.integers(0, 3))
def test_one_resize_equals_both_at_any_size(
    height: int, width: int, sam: tuple[int, int], masks: int
) -> None:
    (low_res, square), size_yx = sam, (height, width)
    resized = sam_size(size_yx, square)
    logits = np.random.default_rng(height).standard_normal((masks, low_res, low_res)).astype(np.float32)
    padded = upsample_bilinear(logits, (square, square))
    expected = upsample_bilinear(padded[:, : resized[0], : resized[1]], size_yx)
    got = MaskResize(low_res=low_res, square=square, resized_yx=resized, size_yx=size_yx)(logits)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert np.allclose(got, expected, atol=1e-5)


@pytest.mark.needs_torch
@pytest.mark.parametrize("size_yx", [(120, 160), (97, 31), (360, 640)])
def test_masks_are_resized_as_segment_anything_does(size_yx: tuple[int, int]) -> None:
    import torch
    from torch.nn.functional import interpolate

    resized = sam_size(size_yx, 160)
    logits = np.random.default_rng(0).standard_normal((2, 40, 40)).astype(np.float32)
    padded = interpolate(torch.from_numpy(logits)[:, None], (160, 160), mode="bilinear", align_corners=False)
    cut = padded[..., : resized[0], : resized[1]]
    expected = interpolate(cut, size_yx, mode="bilinear", align_corners=False)[:, 0].numpy()
    got = MaskResize(low_res=40, square=160, resized_yx=resized, size_yx=size_yx)(logits)
    assert np.allclose(got, expected, atol=1e-5)
