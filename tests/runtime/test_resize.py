import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from refdiff.contracts.session import Float, ImageArray
from refdiff.contracts.spec import SamSpec
from refdiff.runtime.resize import (
    MaskResize,
    diffusion_input,
    resize_image,
    sam_input,
    sam_size,
    upsample_bilinear,
    upsample_levels,
)

SIZES = [(48, 80), (80, 48), (31, 64), (1, 9), (9, 1), (1, 1), (50, 50)]
sides = st.integers(1, 24)
mask_sides = st.integers(1, 90)


def _image(height: int, width: int, seed: int = 0) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _padded(image: ImageArray) -> ImageArray:
    """Center an image on a black square."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


@pytest.mark.slow
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("wanted", [(40, 61), (1100, 40), (1500, 1100)])
@pytest.mark.parametrize("size", [(3, 5), (1, 1300), (1300, 1), (1500, 1100)])
@pytest.mark.parametrize("method", [Image.Resampling.LANCZOS, Image.Resampling.BILINEAR])
def test_images_are_resized_in_bands_as_pillow_resizes_them_at_once(
    size: tuple[int, int], wanted: tuple[int, int], method: Image.Resampling, square: bool
) -> None:
    image = _image(*size)
    whole = Image.fromarray(_padded(image) if square else image).resize(wanted[::-1], method)
    np.testing.assert_array_equal(resize_image(image, wanted, method, square=square), np.asarray(whole))


@pytest.mark.parametrize("size", [(1, 1), (1, 1500), (1500, 1), (7, 4), (1100, 1400)])
def test_an_image_has_its_part_of_the_map_that_covers_its_square(size: tuple[int, int]) -> None:
    side = max(size)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    window = (slice(top, top + size[0]), slice(left, left + size[1]))
    floats = np.random.default_rng(0).random((9, 9), np.float32)
    levels = (floats * 255).astype(np.uint8)
    whole = np.asarray(Image.fromarray(levels).resize((side, side), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(upsample_levels(levels, side, size), whole[window])
    square = upsample_bilinear(floats, (side, side))
    np.testing.assert_array_equal(upsample_bilinear(floats, (side, side), window), square[window])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_diffusion_input_is_a_square_within_minus_one_and_one(height: int, width: int) -> None:
    values = diffusion_input(_image(height, width), 32)
    assert values.shape == (1, 3, 32, 32)
    assert values.dtype == np.float32
    assert values.min() >= -1
    assert values.max() <= 1


def test_padding_is_black_above_and_below_a_wide_image() -> None:
    white = np.full((32, 64, 3), 255, np.uint8)
    values = diffusion_input(white, 64)[0]
    assert (values[:, :16] == -1).all()
    assert (values[:, 16:48] == 1).all()
    assert (values[:, 48:] == -1).all()


def test_colors_stay_in_the_order_red_green_blue() -> None:
    image = np.zeros((6, 9, 3), np.uint8)
    image[..., 0] = 255
    values = diffusion_input(image, 9)[0]
    assert values[0].max() == 1
    assert values[1].max() == values[2].max() == -1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_sam_input_is_zero_outside_the_resized_image(height: int, width: int) -> None:
    spec = SamSpec(image_size=64, embed_channels=8, embed_size=4)
    values, (rows, columns) = sam_input(_image(height, width), spec)
    assert values.shape == (1, 3, 64, 64)
    assert values.dtype == np.float32
    assert max(rows, columns) == 64
    assert not values[:, :, rows:].any()
    assert not values[:, :, :, columns:].any()


@pytest.mark.parametrize("size", [(2, 1000), (1000, 2)])
def test_a_sliver_keeps_one_row_for_sam(size: tuple[int, int]) -> None:
    _, resized = sam_input(_image(*size), SamSpec(image_size=64, embed_channels=8, embed_size=4))
    assert min(resized) == 1


@pytest.mark.needs_torch
@pytest.mark.parametrize(("height", "width"), [(48, 80), (80, 48), (31, 64), (333, 201), (50, 50), (64, 64)])
def test_the_sam_input_is_that_of_segment_anything(height: int, width: int) -> None:
    import torch
    from segment_anything.utils.transforms import ResizeLongestSide

    spec, image = SamSpec(image_size=64, embed_channels=8, embed_size=4), _image(height, width)
    resized = ResizeLongestSide(64).apply_image(image)
    pixels = torch.as_tensor(resized).permute(2, 0, 1)[None]
    mean = torch.tensor(spec.pixel_mean).view(-1, 1, 1)
    std = torch.tensor(spec.pixel_std).view(-1, 1, 1)
    pixels = (pixels - mean) / std
    padded = torch.nn.functional.pad(pixels, (0, 64 - pixels.shape[-1], 0, 64 - pixels.shape[-2]))
    values, resized_yx = sam_input(image, spec)
    assert resized_yx == resized.shape[:2]
    np.testing.assert_allclose(values, padded.numpy(), atol=1e-6)


@pytest.mark.needs_torch
@given(
    array=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 3), sides, sides), elements=st.floats(-8, 8, width=32)
    ),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_bilinear_is_exact_but_for_the_rounding_of_places(array: Float, size: tuple[int, int]) -> None:
    import torch

    doubles = torch.from_numpy(array.astype(np.float64))[None]
    exact = torch.nn.functional.interpolate(doubles, size, mode="bilinear")[0].numpy()
    ours = upsample_bilinear(array, size)
    assert ours.dtype == np.float32
    # A place on an axis is rounded three times to float32; its error counts by the slope between two cells.
    slack = sum(
        1.5 * np.spacing(np.float32(array.shape[axis])) * np.abs(np.diff(array, axis=axis)).max(initial=0.0)
        for axis in (1, 2)
    )
    assert np.abs(ours - exact).max() <= 1e-6 * max(1.0, np.abs(array).max()) + slack


@pytest.mark.needs_torch
@pytest.mark.parametrize("size", [(480, 640), (64, 64), (256, 300), (50, 31)])
def test_bilinear_is_that_of_torch(size: tuple[int, int]) -> None:
    import torch

    # Few planes of even sizes: torch works out places in one of two ways, by shape and number of threads.
    array = np.random.default_rng(0).uniform(-8, 8, (2, 64, 64)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(array)[None], size, mode="bilinear")[0]
    # Places are single-precision numbers up to 64, whose rounding differs between torch's versions.
    np.testing.assert_allclose(upsample_bilinear(array, size), theirs.numpy(), atol=5e-5)


@pytest.mark.slow
@given(hnp.arrays(np.float32, (2, 3, 5, 7), elements=st.floats(-8, 8, width=32)))
def test_bilinear_to_the_same_size_changes_nothing(array: Float) -> None:
    np.testing.assert_allclose(upsample_bilinear(array, (5, 7)), array, atol=1e-6)


@given(st.floats(-100, 100, width=32), st.tuples(sides, sides), st.tuples(sides, sides))
def test_bilinear_keeps_a_constant(value: float, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    resized = upsample_bilinear(np.full(size, value, np.float32), wanted)
    assert resized.shape == wanted
    # Below the smallest normal number, float32 has no relative precision to keep.
    np.testing.assert_allclose(resized, value, rtol=1e-6, atol=np.finfo(np.float32).tiny)


@settings(deadline=None)
@given(mask_sides, mask_sides, st.sampled_from([(4, 16), (8, 24), (16, 64)]), st.integers(0, 3))
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


def test_masks_are_resized_in_bands_as_at_once() -> None:
    resize = MaskResize(low_res=40, square=160, resized_yx=(160, 130), size_yx=(1900, 1500))
    logits = np.random.default_rng(2).normal(0, 4, (2, 40, 40)).astype(np.float32)
    bands = list(resize.bands(logits[1:]))
    assert len(bands) > 1
    assert max(band.nbytes for _, band in bands) <= 4 << 20
    whole = resize(logits)
    for rows, band in bands:
        np.testing.assert_array_equal(band[0], whole[1, rows])
