"""Read any image as the one array that the rest of the package uses.

In: a path, encoded bytes, a binary file object, a Pillow image or an array. Out: [y, x, 3] uint8 RGB, upright
by its EXIF data. Transparent parts are laid on white. What is ambiguous is refused with an `InputError` that
says how to convert it. BGR arrays look like RGB ones: reverse the last axis of OpenCV's.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.contracts.plain_file import read_plain
from refdiff.contracts.session import ImageArray
from refdiff.errors import InputError
from refdiff.runtime.image_file import check_size, convert, decode

ImageLike = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any]
"""What `read_image` takes."""

_EXPECTED = "expected [y, x], [y, x, 1], [y, x, 3] RGB or [y, x, 4] RGBA, of uint8 or of floats in 0..1"

_CHANNELS = (1, 3, 4)

_PNG_LEVEL = 3
"""Of zlib, 0..9: a third of the time of 6, the usual one, and 3% more bytes."""


def read_image(source: ImageLike, *, name: str = "the image's bytes") -> ImageArray:
    """Read a still image.

    Args:
        source: one of

            * a path, the bytes of a file, or a binary file object, which is read to its end. Files may be
              gray, palette, CMYK, transparent, 16-bit or rotated by EXIF.
            * a Pillow image of any mode.
            * an array [y, x] or [y, x, 1] gray, [y, x, 3] RGB or [y, x, 4] RGBA, of uint8, or of floats in
              0..1. A contiguous [y, x, 3] uint8 array is returned as it is.
        name: what messages call bytes.

    Returns:
        [y, x, 3].

    Raises:
        InputError: missing, empty, damaged, animated, too large, ambiguous, or not an image.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return convert(source, "the Pillow image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode(bytes(source), name)
    if isinstance(source, (str, os.PathLike)):
        return decode(read_path(Path(source)), str(source))
    if hasattr(source, "read"):
        return decode(*_read_stream(source))
    raise InputError(
        f"got an image of type {type(source).__name__}, expected a path, bytes, a binary file object, "
        "a Pillow image or a numpy array; convert it with numpy.asarray(image)"
    )


def read_only_copy(source: ImageLike) -> ImageArray:
    """Read an image as `read_image` does, into a read-only array [y, x, 3] of its own."""
    pixels = read_image(source)
    if isinstance(source, np.ndarray):  # anything else was decoded into an array of its own
        pixels = pixels.copy()
    pixels.setflags(write=False)
    return pixels


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image [y, x] or [y, x, 3] as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def read_path(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        InputError: it is missing, a folder, or cannot be read.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected an image file; name a file in it")
    try:
        return read_plain(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist, expected an image file; check the path") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; check the path and its permissions") from error


def _read_stream(stream: BinaryIO) -> tuple[bytes, str]:
    """Read a file object from where it stands; return its bytes and the name for messages."""
    name = str(getattr(stream, "name", "the file object"))
    try:
        data = stream.read()
    except (OSError, ValueError) as error:  # ValueError: closed, or text that is not UTF-8
        raise InputError(f"{name} cannot be read: {error}; open it with open(path, 'rb')") from error
    if not isinstance(data, bytes):
        raise InputError(
            f"{name} returned {type(data).__name__}, expected bytes; open it in binary mode: open(path, 'rb')"
        )
    if not data:
        raise InputError(f"{name}: got no data, expected an image file; go to its start with seek(0)")
    return data, name


def _from_array(array: NDArray[Any]) -> ImageArray:
    _check_shape(array)
    check_size(array.shape[1], array.shape[0], "the array")
    pixels = _to_uint8(array)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels)
    pixels = pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels
    return convert(Image.fromarray(np.ascontiguousarray(pixels)), "the array")


def _check_shape(array: NDArray[Any]) -> None:
    """Refuse arrays whose axes are not those of one image, with the conversion that is likely missing."""
    shape = array.shape
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"got a masked array, {_EXPECTED}; fill it with array.filled(value)")
    if array.ndim == 2 or (array.ndim == 3 and shape[2] in _CHANNELS):
        return
    advice = "bring it into one of these shapes"
    if array.ndim == 4 and shape[0] == 1:
        advice = "remove the batch axis with array[0]"
    elif array.ndim == 3 and shape[0] in _CHANNELS:
        advice = "move the channels to the end with array.transpose(1, 2, 0)"
    elif array.ndim == 3 and shape[2] == 2:
        advice = "leave the second channel out, or make it RGBA"
    raise InputError(f"got an array of shape {shape}, {_EXPECTED}; {advice}")


def _to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale floats in 0..1 to 0..255, rounded; refuse what has no certain range."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())  # NaN if any value is
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"got floats in {low:.9g}..{high:.9g}, expected 0..1; scale or clip them, or convert values "
                "in 0..255 with array.astype(numpy.uint8)"
            )
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    advice = {
        "bool": "convert a mask with array.astype(numpy.uint8) * 255",
        "uint16": "scale it by the camera's depth, for 16 bits (array / 257).round().astype(numpy.uint8)",
    }.get(array.dtype.name, "convert values in 0..255 with array.astype(numpy.uint8)")
    raise InputError(f"got an array of {array.dtype}, {_EXPECTED}; {advice}")
