import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refdiff.errors import InputError
from refdiff.runtime.image import LIMIT_PX, read_image

HEIGHT, WIDTH = 5, 8
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def _encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _claimed(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


PNG, JPEG = _encoded(Image.fromarray(RGB)), _encoded(Image.fromarray(RGB), "JPEG")


def test_a_path_a_string_bytes_and_an_array_are_the_same_image(tmp_path: Path) -> None:
    path = tmp_path / "an image.png"
    path.write_bytes(PNG)
    for source in (path, str(path), PNG, RGB):
        np.testing.assert_array_equal(read_image(source), RGB)


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (1, 1)])
def test_one_pixel_wide_images_are_images(size: tuple[int, int]) -> None:
    values = np.full((*size, 3), 9, np.uint8)
    np.testing.assert_array_equal(read_image(_encoded(Image.fromarray(values))), values)


def test_gray_becomes_three_equal_channels() -> None:
    values = read_image(_encoded(Image.fromarray(RGB[..., 0])))
    np.testing.assert_array_equal(values, np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_full_scale(kind: str) -> None:
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    values = read_image(_encoded(Image.fromarray(levels), kind))
    assert values.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(values[..., 1], np.rint(levels / 257))


def test_black_and_white_is_read() -> None:
    values = read_image(_encoded(Image.fromarray(RGB[..., 0] > 128)))
    assert set(np.unique(values)) == {0, 255}


def test_cmyk_is_converted() -> None:
    cmyk = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
    red = read_image(_encoded(cmyk, "TIFF"))
    assert (red == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_laid_on_white(mode: str) -> None:
    values = read_image(_encoded(Image.new(mode, (WIDTH, HEIGHT))))
    assert (values == 255).all()


def test_a_palette_with_a_transparent_color_is_laid_on_white() -> None:
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    values = read_image(_encoded(image, transparency=0))
    assert values[0, 0].tolist() == [255, 255, 255]
    assert values[1, 1].tolist() == [10, 20, 30]


def test_an_image_rotated_by_exif_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    values = read_image(_encoded(Image.fromarray(RGB), "PNG", exif=exif))
    np.testing.assert_array_equal(values, np.rot90(RGB, -1))


def test_an_image_decoded_from_a_file_can_be_written_to() -> None:
    image = read_image(PNG)
    image[0, 0] = 7
    assert image[0, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_an_animation_is_refused_with_its_number_of_frames(kind: str) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "green", "blue")]
    with pytest.raises(InputError, match="has 3 frames"):
        read_image(_encoded(frames[0], kind, save_all=True, append_images=frames[1:]))


def test_a_phone_photo_with_a_second_image_inside_is_its_first_one() -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("white", "black")]
    assert read_image(_encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])).min() > 250


@pytest.mark.parametrize("name", ["missing.png", "nul\0.png", "https://example.org/a.png"])
def test_a_missing_file_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match="check the path"):
        read_image(name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(InputError, match=r"empty\.jpg: got no data"):
        read_image(path)


def test_text_is_not_an_image() -> None:
    with pytest.raises(InputError, match="not an image"):
        read_image(b"hello, I am a text file")


@pytest.mark.parametrize("data", [PNG, JPEG])
def test_a_truncated_file_is_refused_not_filled_with_gray(data: bytes) -> None:
    with pytest.raises(InputError, match="damaged"):
        read_image(data[: len(data) * 2 // 3])


@settings(max_examples=150)
@given(st.sampled_from([PNG, JPEG]), st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused_and_never_crashes(data: bytes, at: int, junk: bytes) -> None:
    at %= len(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values = read_image(data[:at] + junk + data[at + len(junk) :])
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert values.dtype == np.uint8


@pytest.mark.parametrize(
    ("size", "said"),
    [((9_000, 9_000), "megapixels"), ((60_000, 60_000), "megapixels"), ((20_000, 4), "a side")],
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size: tuple[int, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_image(_claimed(*size))


def test_the_limit_is_below_the_size_pillow_warns_of() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert LIMIT_PX < Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "array",
    [
        RGB.astype(np.float32),
        RGB[..., 0],
        RGB.transpose(2, 0, 1),
        np.zeros((HEIGHT, WIDTH, 4), np.uint8),
        np.zeros((0, WIDTH, 3), np.uint8),
    ],
)
def test_any_other_array_is_refused_with_what_was_got(array: Any) -> None:
    with pytest.raises(InputError, match=r"float32|shape|0 px"):
        read_image(array)


def test_any_other_type_is_refused() -> None:
    with pytest.raises(InputError, match="Image"):
        read_image(Image.fromarray(RGB))  # type: ignore[arg-type]


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="floating-point"):
        read_image(_encoded(Image.new("F", (WIDTH, HEIGHT)), "TIFF"))


def test_gray_levels_beyond_sixteen_bits_are_refused() -> None:
    with pytest.raises(InputError, match="70000"):
        read_image(_encoded(Image.new("I", (WIDTH, HEIGHT), 70_000), "TIFF"))
