"""Read any image as the one array that the rest of the package uses.

In: a path, encoded bytes, or an array. Out: [y, x, 3] uint8 RGB, upright by its EXIF data. Transparent
parts are laid on white, 16-bit gray keeps its full scale, and what cannot be read is an `InputError`.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from refdiff.contracts.session import ImageArray
from refdiff.errors import InputError

ImageLike = str | Path | bytes | NDArray[Any]
"""A file's path, a file's bytes, or an array [y, x, 3] uint8 RGB."""

LIMIT_PX = 80_000_000
"""Most pixels of an image; below Pillow's own warning, and far above what any encoder here can use."""

LIMIT_SIDE_PX = 16_384
"""Longest side in px: the attention branch pads to a square of it (METHOD §4.1)."""

_UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
)
"""Exceptions that Pillow's decoders raise on damaged files."""

_GRAY16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(source: ImageLike, *, name: str = "the image's bytes") -> ImageArray:
    """Read a still image.

    Args:
        source: a file's path, a file's bytes, or an array [y, x, 3] uint8 RGB, which is returned as it is.
            Files may be gray, palette, CMYK, transparent, 16-bit or rotated by EXIF.
        name: what messages call a file's bytes.

    Returns:
        [y, x, 3].

    Raises:
        InputError: missing, empty, damaged, animated, too large, or not an image.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), name)
    if isinstance(source, (str, Path)):
        return _decode(_read_bytes(Path(source)), str(source))
    raise InputError(
        f"got an image of type {type(source).__name__}, expected a path, bytes or a numpy array; "
        "convert it with numpy.asarray(image.convert('RGB'))"
    )


def read_only_copy(source: ImageLike) -> ImageArray:
    """Read an image as `read_image` does, into a read-only array [y, x, 3] of its own."""
    pixels = read_image(source).copy()
    pixels.setflags(write=False)
    return pixels


def _check_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    expected = "expected [y, x, 3] uint8 RGB"
    if array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"got an array of shape {array.shape}, {expected}; bring it into that shape")
    if array.dtype != np.uint8:
        raise InputError(f"got an array of {array.dtype}, {expected}; scale it to 0..255 and convert it")
    _check_size(array.shape[1], array.shape[0], "the array")
    return np.ascontiguousarray(array)


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected an image file; name a file in it")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist, expected an image file; check the path") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; check the path and its permissions") from error


def _decode(data: bytes, name: str) -> NDArray[np.uint8]:
    if not data:
        raise InputError(f"{name}: got no data, expected an image file; write or copy it again")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.width, image.height, name)
            _check_still(image, name)
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image that can be read, expected JPEG, PNG or similar; convert it"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name}: {_too_large('more')}") from error
    except _UNDECODABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{name} is damaged or in an unknown format ({reason}); save it again as PNG"
        ) from error


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width}x{height} px, expected at least 1x1; check where it comes from")
    if width * height > LIMIT_PX:
        raise InputError(f"{name}: {_too_large(f'{width}x{height}')}")
    if max(width, height) > LIMIT_SIDE_PX:
        raise InputError(f"{name} is {width}x{height} px, expected at most {LIMIT_SIDE_PX} a side; crop it")


def _too_large(got: str) -> str:
    return f"got {got} px, expected at most {LIMIT_PX // 10**6} megapixels; shrink it first"


def _check_still(image: Image.Image, name: str) -> None:
    """Refuse animations and multi-page files, as the caller has to choose a frame.

    Phones and stereo cameras write an MPO as .jpg: its first image is the photo.
    """
    frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise InputError(
            f"{name} has {frames} frames, expected a still image; save the frame you mean to a file"
        )


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _GRAY16:
        return _from_gray16(np.asarray(image))
    if image.mode == "F":
        raise InputError(
            "got floating-point pixels, expected 8 or 16 bits; scale them to 0..255 and save it again"
        )
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _from_gray16(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert 16 bits to 8 over the full scale, as three equal channels; [y, x] -> [y, x, 3]."""
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise InputError(f"got gray levels {low}..{high}, expected 16 bits (0..65535); scale them first")
    gray = np.rint(levels.astype(np.float32) / 257.0).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image [y, x] or [y, x, 3] as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
