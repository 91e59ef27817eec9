"""ROS images as RGB arrays, and pictures as ROS images.

In: `sensor_msgs/Image` and `sensor_msgs/CompressedImage`, of rclpy or of rosbags: only their fields are read.
Out: [y, x, 3] uint8 RGB. What does not state its colors is refused, unless the caller states them: red and
blue exchanged, or millimeters shown as gray levels, would be answered with a wrong mask.

Axes: y/x = image rows/columns, c = channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.optional import load_cv2
from refdiff.contracts.session import Bool, ImageArray
from refdiff.errors import InputError
from refdiff.runtime.image_file import check_size, decode


class ImageMessage(Protocol):
    """The fields of `sensor_msgs/Image` that are read; `data` has the buffer protocol."""

    height: int
    width: int
    encoding: str
    is_bigendian: int | bool
    step: int
    data: Any


class CompressedMessage(Protocol):
    """The fields of `sensor_msgs/CompressedImage` that are read; `data` has the buffer protocol."""

    format: str
    data: Any


class ImageFields(TypedDict):
    """The fields of a `sensor_msgs/Image` besides its header."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: NDArray[np.uint8]
    """[step * height]."""


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How an encoding stores a picture."""

    bits: int = 8
    channels: int = 1
    """Values per pixel in a row; 2 for packed YUV 4:2:2."""
    order: tuple[int, ...] | None = None
    """The channels that are red, green and blue; None if OpenCV converts."""
    opencv: str = ""
    """The name of OpenCV's conversion, without the prefix COLOR_."""
    even: tuple[int, int] = (1, 1)
    """What height and width have to be multiples of."""
    planes: tuple[int, int] = (1, 1)
    """Rows of data for each row of the picture, as a fraction."""


_LAYOUTS = {
    "mono8": _Layout(order=(0, 0, 0)),
    "8uc1": _Layout(order=(0, 0, 0)),
    "mono16": _Layout(bits=16, order=(0, 0, 0)),
    "rgb8": _Layout(channels=3, order=(0, 1, 2)),
    "bgr8": _Layout(channels=3, order=(2, 1, 0)),
    "rgba8": _Layout(channels=4, order=(0, 1, 2)),
    "bgra8": _Layout(channels=4, order=(2, 1, 0)),
    "rgb16": _Layout(bits=16, channels=3, order=(0, 1, 2)),
    "bgr16": _Layout(bits=16, channels=3, order=(2, 1, 0)),
    "rgba16": _Layout(bits=16, channels=4, order=(0, 1, 2)),
    "bgra16": _Layout(bits=16, channels=4, order=(2, 1, 0)),
    # OpenCV names a mosaic by the second row's second and third pixel, ROS by the first two of both rows.
    "bayer_rggb8": _Layout(opencv="BayerBG2RGB", even=(2, 2)),
    "bayer_bggr8": _Layout(opencv="BayerRG2RGB", even=(2, 2)),
    "bayer_gbrg8": _Layout(opencv="BayerGR2RGB", even=(2, 2)),
    "bayer_grbg8": _Layout(opencv="BayerGB2RGB", even=(2, 2)),
    "bayer_rggb16": _Layout(bits=16, opencv="BayerBG2RGB", even=(2, 2)),
    "bayer_bggr16": _Layout(bits=16, opencv="BayerRG2RGB", even=(2, 2)),
    "bayer_gbrg16": _Layout(bits=16, opencv="BayerGR2RGB", even=(2, 2)),
    "bayer_grbg16": _Layout(bits=16, opencv="BayerGB2RGB", even=(2, 2)),
    "yuv422": _Layout(channels=2, opencv="YUV2RGB_UYVY", even=(1, 2)),
    "uyvy": _Layout(channels=2, opencv="YUV2RGB_UYVY", even=(1, 2)),
    "yuv422_yuy2": _Layout(channels=2, opencv="YUV2RGB_YUYV", even=(1, 2)),
    "yuyv": _Layout(channels=2, opencv="YUV2RGB_YUYV", even=(1, 2)),
    "nv12": _Layout(opencv="YUV2RGB_NV12", even=(2, 2), planes=(3, 2)),
    "nv21": _Layout(opencv="YUV2RGB_NV21", even=(2, 2), planes=(3, 2)),
}
"""Encoding in lower case -> layout. The names are those of sensor_msgs/image_encodings.hpp, and `nv12`. YUV
is BT.601 with limited range, as in OpenCV and cv_bridge."""

ENCODINGS = tuple(sorted(_LAYOUTS))
"""Encodings that are read, in lower case."""

_AMBIGUOUS = {
    "8uc3": "does not say whether it is RGB or BGR; set the parameter encoding to rgb8 or bgr8",
    "8uc4": "does not say whether it is RGBA or BGRA; set the parameter encoding to rgba8 or bgra8",
    "16uc1": "is usually depth in mm; use the color image, or set the parameter encoding to mono16 for gray",
    "32fc1": "is usually depth in m; use the color image",
}
"""Encodings that do not state what they show -> what to do."""

_OPAQUE = ("compresseddepth", "theora", "h264", "h265", "hevc", "av1", "ffmpeg", "zdepth", "rvl")
"""Formats of CompressedImage that are no still color image."""


def image_to_rgb(message: ImageMessage, *, encoding: str = "") -> ImageArray:
    """Read a `sensor_msgs/Image`.

    Args:
        message: rows may have padding, and 16-bit values either byte order.
        encoding: read the data as this encoding, whatever the message says; empty: as it says.

    Returns:
        [y, x, 3], read-only, possibly a view of the message's data. Alpha is left out, as cameras do not set
        it; 16 bits are scaled over their full range.

    Raises:
        InputError: an encoding that is not read or does not state its colors, or sizes that contradict each
            other.
        MissingDependencyError: mosaics and YUV need OpenCV, which is not installed.
    """
    name = encoding or message.encoding
    layout = _layout_of(name)
    check_size(message.width, message.height, f"the {name} image")
    rows = _rows(message, layout, name)  # [rows, x * c]
    if layout.order is not None:
        picture = rows.reshape(message.height, message.width, layout.channels)
        if layout.order != tuple(range(layout.channels)):
            picture = picture[:, :, list(layout.order)]
    else:
        picture = _convert(rows, layout, name)
    picture = np.ascontiguousarray(_to_8_bits(picture))
    picture.setflags(write=False)
    return picture


def _layout_of(encoding: str) -> _Layout:
    known = encoding.lower()
    if known in _AMBIGUOUS:
        raise InputError(f"encoding {encoding} {_AMBIGUOUS[known]}")
    if known not in _LAYOUTS:
        raise InputError(
            f"got encoding {encoding!r}, expected one of: {', '.join(ENCODINGS)}; convert the image before, "
            "for example with image_proc"
        )
    return _LAYOUTS[known]


def _rows(message: ImageMessage, layout: _Layout, name: str) -> NDArray[Any]:
    """Return the rows without padding, [rows, x * c] of uint8, or of uint16 in the host's byte order."""
    height, width, step = message.height, message.width, message.step
    what = f"the {name} image of {width}x{height} px"
    if height % layout.even[0] or width % layout.even[1]:
        raise InputError(f"{what} has an odd size, which the encoding cannot have; check the camera's driver")
    row_bytes = width * layout.channels * layout.bits // 8
    if step < row_bytes:
        raise InputError(
            f"{what} has step {step}, expected at least {row_bytes} bytes a row; check the camera's driver"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    rows = height * layout.planes[0] // layout.planes[1]
    if data.size != step * rows:
        raise InputError(
            f"{what} with step {step} has {data.size} bytes of data, expected {step} x {rows} = "
            f"{step * rows}; check the camera's driver"
        )
    values = data.reshape(rows, step)[:, :row_bytes]
    if layout.bits == 8:
        return values
    return np.ascontiguousarray(values).view(">u2" if message.is_bigendian else "<u2").astype(np.uint16)


def _convert(rows: NDArray[Any], layout: _Layout, name: str) -> NDArray[Any]:
    """Convert a mosaic or YUV with OpenCV; [rows, x * c] -> [y, x, 3] of the same depth."""
    cv2 = load_cv2(f"an image of encoding {name}")
    values = np.ascontiguousarray(rows)
    if layout.channels > 1:
        values = values.reshape(len(rows), -1, layout.channels)
    converted: NDArray[Any] = cv2.cvtColor(values, getattr(cv2, f"COLOR_{layout.opencv}"))
    return converted


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounded v / 257


def compressed_to_rgb(message: CompressedMessage, *, encoding: str = "") -> ImageArray:
    """Read a `sensor_msgs/CompressedImage` of a still image, such as JPEG or PNG.

    Args:
        message: its `format` is what image_transport writes ("rgb8; jpeg compressed bgr8"), or any text such
            as "jpeg"; what the file is, its first bytes decide.
        encoding: "rgb8" or "mono16": the file's own colors, whatever the format says; "bgr8": its red and
            blue exchanged; empty: as the format says.

    Returns:
        [y, x, 3], read-only.

    Raises:
        InputError: no still color image, damaged, too large, or a format that does not state its colors.
    """
    if encoding not in ("", "rgb8", "bgr8", "mono16"):
        raise InputError(f"got encoding {encoding!r} for compressed images, expected rgb8, bgr8 or mono16")
    if not encoding:
        _check_format(message.format)
    picture = decode(bytes(message.data), f"the compressed image of format {message.format!r}")
    if encoding == "bgr8":
        picture = np.ascontiguousarray(picture[:, :, ::-1])
    picture.setflags(write=False)
    return picture


def _check_format(text: str) -> None:
    """Refuse a format of image_transport that is no color or gray image.

    Its plug-in writes "ENCODING; CODEC compressed TARGET", with bgr8 or nothing as the target: it hands BGR
    to OpenCV, which stores true colors. With another target, red and blue of the file are exchanged.
    """
    lowered = text.lower()
    for codec in _OPAQUE:
        if codec in lowered:
            raise InputError(
                f"got format {text!r}, expected a still image such as JPEG or PNG; use the topic of "
                "image_transport's plug-in `compressed`, or the raw image"
            )
    source, _, rest = (each.strip() for each in lowered.partition(";"))
    if not rest:
        return
    if source in _AMBIGUOUS:
        raise InputError(f"format {text!r}: encoding {source} {_AMBIGUOUS[source]}")
    if source.startswith("bayer"):
        raise InputError(f"format {text!r} is a mosaic; compress the debayered image, as image_proc makes it")
    target = rest.partition("compressed")[2].strip()
    if target.startswith("rgb"):
        raise InputError(
            f"format {text!r} does not say what the file's colors are; set the parameter encoding to rgb8 "
            "if a viewer of image files shows them right, else to bgr8"
        )


def image_fields(picture: ImageArray | Bool) -> ImageFields:
    """Return the fields of the `sensor_msgs/Image` that shows a picture.

    Args:
        picture: [y, x] bool becomes mono8, 255 where it is True; [y, x] uint8 becomes mono8 as it is;
            [y, x, 3] becomes rgb8.
    """
    values = picture.astype(np.uint8) * np.uint8(255) if picture.dtype == np.bool_ else picture
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else 3
    return {
        "height": height,
        "width": width,
        "encoding": "mono8" if channels == 1 else "rgb8",
        "is_bigendian": 0,
        "step": width * channels,
        "data": np.ascontiguousarray(values, dtype=np.uint8).reshape(-1),
    }
