"""Decode the files of the formats that refdiff names; Pillow's other decoders are never tried.

In: a file's bytes, or an opened Pillow image. Out: [y, x, 3] uint8 RGB, upright by its EXIF data. Pillow can
open formats that start programs (EPS calls Ghostscript), whatever the file's name says.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from refdiff.errors import InputError

_PLUGINS = {
    "JPEG": "Jpeg",  # and MPO, the files of phones and stereo cameras
    "PNG": "Png",
    "WEBP": "WebP",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "GIF": "Gif",
    "PPM": "Ppm",
    "JPEG2000": "Jpeg2K",
    "AVIF": "Avif",  # Pillow 11.3 and newer
}
"""Format -> the prefix of Pillow's module that decodes it."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")

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

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LIMITED_CHUNKS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION_KEYS = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")

_GRAY16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def decode(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a file of one still image.

    Args:
        data: the file.
        name: what messages call it.

    Raises:
        InputError: it is empty, damaged, animated, too large, or not of a format that is read.
    """
    if not data:
        raise InputError(f"{name}: got no data, expected an image file; write or copy it again")
    try:
        with Image.open(io.BytesIO(data), formats=_formats() + _heic_formats(data)) as image:
            return _convert(image, name)
    except UnidentifiedImageError as error:
        advice = "install pillow-heif to read HEIC, or convert it" if _is_heic(data) else "convert it"
        raise InputError(
            f"{name} is not an image that can be read, expected JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, "
            f"JPEG 2000, AVIF or HEIC; {advice}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name}: {_too_large('more')}") from error
    except _UNDECODABLE as error:
        slim = _without_large_text(data)
        if slim != data:
            return decode(slim, name)
        raise _damaged(name, error) from error


def convert(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Convert a still Pillow image of any mode to RGB, upright, its transparent parts laid on white.

    Raises:
        InputError: it is damaged, closed, animated or too large, or its pixels have no known range.
    """
    try:
        return _convert(image, name)
    except _UNDECODABLE as error:
        raise _damaged(name, error) from error


def _convert(image: Image.Image, name: str) -> NDArray[np.uint8]:
    check_size(image.width, image.height, name)
    _check_still(image, name)
    return _to_rgb(ImageOps.exif_transpose(image))


def _formats() -> list[str]:
    """Return the formats that Pillow may try, with their decoders loaded."""
    for prefix in _PLUGINS.values():
        with suppress(ModuleNotFoundError):  # an older Pillow
            import_module(f"PIL.{prefix}ImagePlugin")
    return [each for each in _PLUGINS if each in Image.OPEN]


def _heic_formats(data: bytes) -> list[str]:
    """Return the format of HEIC files if this is one and pillow-heif, which decodes it, is installed."""
    if not _is_heic(data):
        return []
    with suppress(ModuleNotFoundError):
        import_module("pillow_heif").register_heif_opener()
    return [each for each in ("HEIF",) if each in Image.OPEN]


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


def _without_large_text(data: bytes) -> bytes:
    """Return a PNG file without the texts and the color profile, which Pillow limits in size.

    Neither changes the pixels that are read. Texts that may state the orientation are kept.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at : at + length + 12]
        kind, content = chunk[4:8], chunk[8:]
        if kind not in _LIMITED_CHUNKS or content.startswith(_ORIENTATION_KEYS):
            kept.append(chunk)
        at += len(chunk)
    return b"".join([*kept, data[at:]])


def _damaged(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{name} is damaged or in an unknown format ({reason}); save it again as PNG")


def check_size(width: int, height: int, name: str) -> None:
    """Refuse an image without pixels, or with too many.

    Raises:
        InputError: with its size in px.
    """
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
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_gray16(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert 16 bits to 8 over the full scale, as three equal channels; [y, x] -> [y, x, 3]."""
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise InputError(f"got gray levels {low}..{high}, expected 16 bits (0..65535); scale them first")
    gray = np.rint(levels.astype(np.float32) / 257.0).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)
