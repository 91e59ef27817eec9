import array
import io
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from refdiff.errors import InputError
from refdiff.ros.images import ENCODINGS, compressed_to_rgb, image_fields, image_to_rgb

PACKED = {
    "mono8": (0,),
    "8UC1": (0,),
    "mono16": (0,),
    "rgb8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "rgba8": (0, 1, 2, 3),
    "bgra8": (2, 1, 0, 3),
    "rgb16": (0, 1, 2),
    "bgr16": (2, 1, 0),
    "rgba16": (0, 1, 2, 3),
    "bgra16": (2, 1, 0, 3),
}
"""Encoding -> the channels, of red, green, blue and alpha, in the order of its data."""
MOSAICS = {"rggb": "RGGB", "bggr": "BGGR", "gbrg": "GBRG", "grbg": "GRBG"}


def message(
    values: NDArray[Any], encoding: str, width: int, *, padding: int = 0, big: bool = False, data: Any = None
) -> Any:
    """Return an image message of rows [y, n], each with bytes of padding that no reader may show."""
    stored = values.astype(values.dtype.newbyteorder(">" if big else "<"))
    rows = np.frombuffer(stored.tobytes(), dtype=np.uint8).reshape(len(values), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=173)
    chroma = 2 if encoding.startswith("nv") else 0
    return SimpleNamespace(
        height=len(values) * 2 // 3 if chroma else len(values),
        width=width,
        encoding=encoding,
        is_bigendian=int(big),
        step=padded.shape[1],
        data=padded.tobytes() if data is None else data,
    )


def pictures() -> st.SearchStrategy[NDArray[np.uint8]]:
    sizes = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32 - 1))
    return sizes.map(
        lambda size: np.random.default_rng(size[2]).integers(0, 256, (size[0], size[1], 4), dtype=np.uint8)
    )


@given(pictures(), st.sampled_from(sorted(PACKED)), st.integers(0, 9), st.booleans())
def test_a_picture_survives_every_packed_encoding_with_padding_and_either_byte_order(
    picture, encoding, padding, big
):
    channels = PACKED[encoding]
    values = picture[:, :, list(channels)]
    if encoding.endswith("16"):
        values = values.astype(np.uint16) * 257
    shown = image_to_rgb(
        message(values.reshape(len(values), -1), encoding, picture.shape[1], padding=padding, big=big)
    )
    expected = picture[:, :, [0, 0, 0]] if len(channels) == 1 else picture[:, :, :3]
    assert shown.dtype == np.uint8
    assert not shown.flags.writeable
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("level", [0, 128, 129, 32896, 65535])
def test_16_bits_are_scaled_over_their_full_range(level):
    shown = image_to_rgb(message(np.full((1, 1), level, dtype=np.uint16), "mono16", 1))
    assert shown[0, 0, 0] == round(level / 257)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", sorted(MOSAICS))
def test_a_mosaic_of_one_color_shows_that_color(pattern, bits):
    pytest.importorskip("cv2")
    color = {"R": 200, "G": 90, "B": 20}
    tile = np.array([color[letter] for letter in MOSAICS[pattern]]).reshape(2, 2)
    values = np.tile(tile, (4, 5)).astype(np.uint8)
    if bits == 16:
        values = values.astype(np.uint16) * 257
    shown = image_to_rgb(message(values, f"bayer_{pattern}{bits}", 10, padding=3))
    np.testing.assert_array_equal(shown, np.broadcast_to([200, 90, 20], (8, 10, 3)))


@pytest.mark.parametrize(
    ("encoding", "order"),
    [("uyvy", "UYVY"), ("yuv422", "UYVY"), ("yuyv", "YUYV"), ("yuv422_yuy2", "YUYV")],
)
def test_packed_yuv_is_read_in_its_order(encoding, order):
    pytest.importorskip("cv2")
    red = {"Y": 81, "U": 90, "V": 240}  # of BT.601, limited range
    row = [red[letter] for letter in order * 3]
    shown = image_to_rgb(message(np.array([row] * 3, dtype=np.uint8), encoding, 6, padding=5))
    np.testing.assert_allclose(shown, np.broadcast_to([255, 0, 0], (3, 6, 3)), atol=2)


@pytest.mark.parametrize(("encoding", "chroma"), [("nv12", (90, 240)), ("nv21", (240, 90))])
def test_planes_of_chroma_are_read_in_their_order(encoding, chroma):
    pytest.importorskip("cv2")
    values = np.concatenate([np.full((4, 6), 81), np.tile(chroma, (2, 3))]).astype(np.uint8)
    shown = image_to_rgb(message(values, encoding, 6, padding=2))
    np.testing.assert_allclose(shown, np.broadcast_to([255, 0, 0], (4, 6, 3)), atol=2)


def test_every_encoding_is_covered_by_a_test_above():
    mosaics = {f"bayer_{pattern}{bits}" for pattern in MOSAICS for bits in (8, 16)}
    yuv = {"uyvy", "yuv422", "yuyv", "yuv422_yuy2", "nv12", "nv21"}
    assert set(ENCODINGS) == {each.lower() for each in PACKED} | mosaics | yuv


@pytest.mark.parametrize("encoding", ["8UC3", "8UC4", "16UC1", "32FC1"])
def test_an_encoding_that_does_not_state_its_colors_is_refused(encoding):
    with pytest.raises(
        InputError, match=f"encoding {encoding} .*use|encoding {encoding} .*set the parameter"
    ):
        image_to_rgb(message(np.zeros((2, 6), dtype=np.uint8), encoding, 2))


def test_the_caller_can_state_the_encoding():
    values = np.array([[1, 2, 3, 4, 5, 6]], dtype=np.uint8)
    shown = image_to_rgb(message(values, "8UC3", 2), encoding="bgr8")
    assert shown.tolist() == [[[3, 2, 1], [6, 5, 4]]]


RED = np.full((2, 6), 7, dtype=np.uint8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoding": "rgb9"}, "got encoding 'rgb9', expected one of: .*rgb8"),
        ({"encoding": ""}, "got encoding ''"),
        ({"step": 5}, "rgb8 image of 2x2 px has step 5, expected at least 6 bytes a row"),
        ({"step": 0}, "has step 0"),
        ({"data": bytes(11)}, r"has 11 bytes of data, expected 6 x 2 = 12"),
        ({"data": bytes(13)}, "has 13 bytes of data"),
        ({"data": b""}, "has 0 bytes of data"),
        ({"height": 0}, "is 2x0 px"),
        ({"width": 0}, "is 0x2 px"),
        ({"height": 2**31, "width": 2**31}, "megapixels"),
        ({"encoding": "uyvy", "width": 3}, "odd size"),
        ({"encoding": "nv12", "height": 1}, "odd size"),
        ({"encoding": "rgb16"}, "has step 6, expected at least 12"),
    ],
)
def test_a_malformed_message_is_refused_by_what_contradicts(changes, said):
    given = message(RED, "rgb8", 2)
    vars(given).update(changes)
    with pytest.raises(InputError, match=said):
        image_to_rgb(given)


@given(
    st.integers(-1, 5),
    st.integers(-1, 5),
    st.integers(-1, 40),
    st.sampled_from([*ENCODINGS, "x"]),
    st.binary(max_size=90),
)
def test_no_combination_of_fields_ends_in_anything_but_a_picture_or_an_input_error(
    height, width, step, encoding, data
):
    pytest.importorskip("cv2")
    given = SimpleNamespace(
        height=height, width=width, step=step, encoding=encoding, data=data, is_bigendian=0
    )
    try:
        shown = image_to_rgb(given)
    except InputError:
        return
    assert shown.shape == (height, width, 3)


def compressed(text: str, picture: NDArray[np.uint8], kind: str = "PNG") -> Any:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return SimpleNamespace(format=text, data=array.array("B", buffer.getvalue()))


COLORS = np.full((8, 16, 3), (200, 90, 20), dtype=np.uint8)


@pytest.mark.parametrize(
    "text", ["jpeg", "jpg", "", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8"]
)
def test_a_jpeg_is_read_in_its_own_colors(text):
    shown = compressed_to_rgb(compressed(text, COLORS, "JPEG"))
    np.testing.assert_allclose(shown, COLORS, atol=3)


@pytest.mark.parametrize(
    "text", ["png", "rgb8; png compressed bgr8", "bgra8; png compressed bgr8", "mono8; png compressed"]
)
def test_a_png_is_read_exactly(text):
    np.testing.assert_array_equal(compressed_to_rgb(compressed(text, COLORS)), COLORS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("16UC1; compressedDepth png", "expected a still image such as JPEG"),
        ("16UC1; png compressed", "usually depth in mm"),
        ("h264", "expected a still image"),
        ("bayer_rggb8; jpeg compressed", "is a mosaic"),
        ("rgb8; jpeg compressed rgb8", "set the parameter encoding to rgb8 if a viewer"),
    ],
)
def test_a_format_that_states_no_colors_is_refused(text, said):
    with pytest.raises(InputError, match=re.escape(said)):
        compressed_to_rgb(compressed(text, COLORS))


def test_the_caller_can_state_the_colors_of_a_compressed_image():
    given = compressed("rgb8; jpeg compressed rgb8", COLORS)
    np.testing.assert_array_equal(compressed_to_rgb(given, encoding="rgb8"), COLORS)
    np.testing.assert_array_equal(compressed_to_rgb(given, encoding="bgr8"), COLORS[:, :, ::-1])
    with pytest.raises(InputError, match="got encoding 'yuyv' for compressed images"):
        compressed_to_rgb(given, encoding="yuyv")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff garbage", b"BM"])
def test_a_damaged_compressed_image_is_refused_by_its_format(data):
    with pytest.raises(InputError, match="the compressed image of format 'jpeg'"):
        compressed_to_rgb(SimpleNamespace(format="jpeg", data=data))


@given(pictures())
def test_what_is_written_is_read_back(picture):
    given = SimpleNamespace(**image_fields(picture[:, :, :3]))
    assert given.encoding == "rgb8"
    np.testing.assert_array_equal(image_to_rgb(given), picture[:, :, :3])


def test_a_mask_is_255_on_0_in_mono8():
    mask = np.array([[True, False, False], [False, False, True]])
    fields = image_fields(mask)
    assert (fields["encoding"], fields["height"], fields["width"], fields["step"]) == ("mono8", 2, 3, 3)
    assert fields["data"].tolist() == [255, 0, 0, 0, 0, 255]


def test_messages_of_rosbags_are_read_and_written():
    typesys = pytest.importorskip("rosbags.typesys")
    types = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE).types
    stamp = types["builtin_interfaces/msg/Time"](sec=1, nanosec=2)
    header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")
    image = types["sensor_msgs/msg/Image"](header=header, **image_fields(COLORS))
    np.testing.assert_array_equal(image_to_rgb(image), COLORS)
