"""Read files of unknown origin: regular files only, and arrays no larger than their files allow.

A FIFO, a device or a folder in the place of a file is refused without waiting for it. Arrays are read from
.npy and .npz without pickle; the size that a header states is compared with the bytes that are there before
memory is taken.
"""

from __future__ import annotations

import ast
import errno
import math
import os
import stat
import struct
import zipfile
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_MOST_BYTES = 1 << 31
"""Most bytes that all arrays of an archive may take together."""

_MOST_RATIO = 1100
"""Times a deflated entry may grow; deflate itself reaches 1032."""

_MOST_HEADER = 10_000
"""Most bytes of a header, as in numpy."""

_MOST_DIMENSIONS = 16
_KINDS = "biufU"
"""Kinds of dtypes that are read: numbers and text, no objects and no records."""

_DAMAGE = (EOFError, MemoryError, NotImplementedError, OSError, RuntimeError, ValueError, zlib.error)
"""What zipfile, zlib and numpy raise at damaged data; KeyError and BadZipFile are added where they occur."""


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading; a FIFO or a device is refused without waiting for it.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise OSError(errno.EINVAL, "is not a regular file", str(path))


def read_plain(path: Path) -> bytes:
    """Read a regular file; see `open_plain`."""
    with open_plain(path) as stream:
        return stream.read()


Stamp = tuple[int, int, int, int]
"""Size, time of the last change in ns, inode and device: another file or another content has another one."""


def file_stamp(path: Path | str) -> Stamp | None:
    """Return the stamp of a file, None if it is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116 - it is called twice for each run of a graph
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def read_array(data: bytes) -> Array:
    """Read the content of a .npy file.

    Raises:
        ValueError: it is not one array of numbers or text, or its size is not the one that its header states.
    """
    dtype, shape, fortran, start = _read_header(data)
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(data) - start:
        raise ValueError(
            f"an array of {dtype} {shape} takes {expected} bytes, its file holds {len(data) - start}"
        )
    flat = np.frombuffer(data, dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C").copy(order="K")


def read_archive(path: Path) -> dict[str, Array]:
    """Read all arrays of a .npz file, by name.

    Raises:
        ValueError: it is not an archive of arrays, is damaged, or holds more than 2 GB.
        OSError: it cannot be read, or is no regular file.
    """
    with open_plain(path) as stream:
        try:
            most = min(_MOST_BYTES, _MOST_RATIO * os.fstat(stream.fileno()).st_size)
            with zipfile.ZipFile(stream) as archive:
                return _read_members(archive, most)
        except (zipfile.BadZipFile, KeyError, *_DAMAGE) as error:
            raise ValueError(str(error) or type(error).__name__) from error


def _read_members(archive: zipfile.ZipFile, most: int) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    left = most
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in arrays or name == member.filename:
            raise ValueError(f"its entry {member.filename!r} is doubled, or is not an array")
        with archive.open(member) as stream:
            data = stream.read(left + 1)  # what an entry claims about its size is not believed
        left -= len(data)
        if left < 0:
            raise ValueError(f"it holds more than {most} bytes")
        arrays[name] = read_array(data)
    return arrays


def _read_header(data: bytes) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Return dtype, shape, whether the order is Fortran's, and where the values start."""
    if data[:6] != b"\x93NUMPY" or data[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise ValueError("it does not start like a .npy file")
    width = 2 if data[6] == 1 else 4
    if len(data) < 8 + width:
        raise ValueError("its header is cut off")
    (length,) = struct.unpack_from("<H" if width == 2 else "<I", data, 8)
    start = 8 + width + length
    if length > _MOST_HEADER or start > len(data):
        raise ValueError(f"its header claims {length} bytes")
    try:
        header = ast.literal_eval(data[8 + width : start].decode("latin-1").strip())
        dtype, shape, fortran = np.dtype(header["descr"]), header["shape"], header["fortran_order"]
    except (KeyError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"its header is damaged ({type(error).__name__})") from error
    if dtype.kind not in _KINDS or not isinstance(fortran, bool):
        raise ValueError(f"it holds {dtype}, expected numbers or text")
    sizes = shape if isinstance(shape, tuple) and len(shape) <= _MOST_DIMENSIONS else (-1,)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise ValueError(f"it has the shape {shape!r}")
    return dtype, sizes, fortran, start
