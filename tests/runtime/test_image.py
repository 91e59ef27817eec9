import io
import os
import struct
import sys
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
from refdiff.runtime.image import read_image
from refdiff.runtime.image_file import LIMIT_PX

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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs")
def test_a_fifo_or_a_device_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("fifo.png", "device.png"):
        with pytest.raises(InputError, match="not a regular file"):
            read_image(tmp_path / name)


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


GRAY = np.repeat(RGB[..., :1], 3, axis=2)
ALPHA = np.concatenate([RGB, np.full((HEIGHT, WIDTH, 1), 128, np.uint8)], axis=2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB[..., 0], GRAY),
        (RGB[..., :1], GRAY),
        (RGB[:, ::-1], RGB[:, ::-1]),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        ((RGB[..., 0] / 255).astype(np.float16), GRAY),
        (np.concatenate([RGB, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=2), RGB),
        (np.zeros((HEIGHT, WIDTH, 4), np.uint8), np.full((HEIGHT, WIDTH, 3), 255)),
        (np.zeros((HEIGHT, WIDTH, 4)), np.full((HEIGHT, WIDTH, 3), 255)),
    ],
    ids=[
        "gray",
        "one channel",
        "not contiguous",
        "double",
        "float",
        "half",
        "opaque",
        "clear",
        "clear float",
    ],
)
def test_gray_color_and_transparent_arrays_of_bytes_or_unit_floats_are_images(
    array: Any, expected: Any
) -> None:
    np.testing.assert_array_equal(read_image(array), expected)


def test_a_transparent_array_is_the_same_image_as_its_file() -> None:
    np.testing.assert_array_equal(read_image(ALPHA), read_image(_encoded(Image.fromarray(ALPHA))))


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (RGB.transpose(2, 0, 1), r"transpose\(1, 2, 0\)"),
        (RGB[None], r"array\[0\]"),
        (RGB[..., :2], "second channel"),
        (RGB[0, 0], "bring it into"),
        (RGB > 128, r"astype\(numpy.uint8\) \* 255"),
        (RGB.astype(np.uint16), "camera's depth"),
        (RGB.astype(np.int64), r"astype\(numpy.uint8\)"),
        (RGB.astype(object), "object"),
        (RGB.astype(np.float32), r"0\.\.255 with"),
        (RGB / 255 - 0.5, "scale or clip"),
        (np.where(RGB > 128, np.nan, RGB / 255), "nan"),
        (np.full((HEIGHT, WIDTH), np.inf), "inf"),
        (np.ma.masked_array(RGB, RGB > 128), "filled"),
        (np.zeros((0, WIDTH, 3), np.uint8), "0 px"),
        (np.zeros((0, WIDTH)), "0 px"),
    ],
)
def test_an_ambiguous_array_is_refused_with_the_conversion(array: Any, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        read_image(array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16"])
def test_a_pillow_image_of_any_mode_is_the_same_image_as_its_lossless_file(mode: str) -> None:
    gray = Image.fromarray(np.linspace(0, 65535, 40).astype(np.uint16).reshape(HEIGHT, WIDTH))
    image = gray if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    values = read_image(image)
    assert values.shape == (HEIGHT, WIDTH, 3)
    if mode not in ("RGBX", "YCbCr", "HSV"):
        np.testing.assert_array_equal(values, read_image(_encoded(image, "TIFF")))


def test_a_pillow_image_with_exif_rotation_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(_encoded(Image.fromarray(RGB), "PNG", exif=exif))) as image:
        np.testing.assert_array_equal(read_image(image), np.rot90(RGB, -1))


def test_a_closed_or_animated_pillow_image_is_refused() -> None:
    image = Image.open(io.BytesIO(PNG))
    image.close()
    with pytest.raises(InputError, match="Pillow image"):
        read_image(image)
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "green")]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as animated, pytest.raises(InputError, match="2 frames"):
        read_image(animated)


def test_a_binary_file_object_is_an_image_and_a_text_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(PNG)
    np.testing.assert_array_equal(read_image(io.BytesIO(PNG)), RGB)
    with path.open("rb") as stream:
        np.testing.assert_array_equal(read_image(stream), RGB)
        with pytest.raises(InputError, match=r"image\.png: got no data.*seek\(0\)"):
            read_image(stream)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(stream)
    with path.open(encoding="utf-8") as text, pytest.raises(InputError, match="'rb'"):
        read_image(text)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="binary mode"):
        read_image(io.StringIO("text"))  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [None, 3, [[1, 2], [3, 4]], {"image": 1}])
def test_any_other_type_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match=r"numpy\.asarray"):
        read_image(source)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="floating-point"):
        read_image(_encoded(Image.new("F", (WIDTH, HEIGHT)), "TIFF"))


def test_gray_levels_beyond_sixteen_bits_are_refused() -> None:
    with pytest.raises(InputError, match="70000"):
        read_image(_encoded(Image.new("I", (WIDTH, HEIGHT), 70_000), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_the_named_formats_are_read_whatever_the_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.txt"
    path.write_bytes(_encoded(Image.new("RGB", (WIDTH, HEIGHT), (250, 0, 0)), kind))
    assert np.abs(read_image(path).astype(int) - (250, 0, 0)).max() < 12


def test_heic_is_read_with_pillow_heif(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = _encoded(Image.new("RGB", (64, 48), (250, 0, 0)), "HEIF")
    assert np.abs(read_image(data).astype(int) - (250, 0, 0)).max() < 12


def test_heic_without_pillow_heif_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(InputError, match="install pillow-heif"):
        read_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 5\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO", "SGI", "DDS"])
def test_formats_that_are_not_named_are_never_opened(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    opened = []
    for name, (factory, accept) in list(Image.OPEN.items()):
        spy = lambda *given, name=name, factory=factory: opened.append(name) or factory(*given)  # noqa: E731
        monkeypatch.setitem(Image.OPEN, name, (spy, accept))
    with pytest.raises(InputError, match="not an image that can be read"):
        read_image(EPS if kind == "EPS" else _encoded(Image.fromarray(RGB), kind))
    assert kind not in opened


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20))),
        _chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
        _chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2 << 20))),
        _chunk(b"tEXt", b"Comment\0" + b"a" * (1 << 20)) * 65,
    ],
    ids=["compressed text", "international text", "color profile", "much text"],
)
@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "after the pixels"])
def test_a_png_with_much_text_or_a_large_profile_is_an_image(chunk: bytes, place: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _encoded(Image.fromarray(RGB), "PNG", exif=exif)
    values = read_image(data[:place] + chunk + data[place:])
    np.testing.assert_array_equal(values, np.rot90(RGB, -1))
