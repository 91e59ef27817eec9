"""Arrays on disk, each once: a file is named after the hash of its content, and checked against it when read.

    <sha256 of the .npy file>.npy.gz

In: float32 arrays at half-precision values (kept in half the bytes, exactly), and integers. Out: the same.
Compressed, an attention mask takes a hundredth of its bytes, and a recording of the pipeline a quarter.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import uuid
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from refdiff.contracts.session import Array
from refdiff.errors import InputError

ARRAY_NAME = re.compile("[0-9a-f]{64}")

_SUFFIX = ".npy.gz"

_FAST = 1
"""gzip's level: higher ones take several times as long for a tenth less."""

_DRAFT = re.compile(r"\..+\.[0-9a-f]{12}\.partial")
"""What a writer that was killed leaves behind."""

CURE = "record again with: refdiff calibrate … --overwrite"


class ArrayFolder:
    """Arrays by their hash.

    Args:
        path: the folder; made with the first array.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, array: Array) -> str:
        """Store an array, unless it is there.

        Args:
            array: float32 at half-precision values (others are rounded), or integers.

        Returns:
            Its name, 64 hexadecimal digits.

        Raises:
            InputError: the folder cannot be written to.
        """
        kept = np.array(array, dtype=np.float16 if array.dtype == np.float32 else array.dtype, order="C")
        buffer = io.BytesIO()
        np.save(buffer, kept, allow_pickle=False)
        data = buffer.getbuffer()
        name = hashlib.sha256(data).hexdigest()
        if not self._file(name).exists():
            write_whole(self._file(name), gzip.compress(data, _FAST, mtime=0))
        return name

    def get(self, name: str) -> Array:
        """Read an array back; half precision comes as float32.

        Raises:
            InputError: the file is missing, unreadable or was changed.
        """
        path = self._file(name)
        try:
            data = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is missing or damaged ({error}); {CURE}") from error
        got = hashlib.sha256(data).hexdigest()
        if got != name:
            raise InputError(f"{path} was changed: got sha256 {got[:12]}…, expected {name[:12]}…; {CURE}")
        array: Array = np.load(io.BytesIO(data), allow_pickle=False)
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def keep_only(self, names: Collection[str]) -> None:
        """Delete arrays that are not named, and drafts; files that are neither stay."""
        for path in self._path.glob("*") if self._path.is_dir() else ():
            name = path.name.removesuffix(_SUFFIX)
            is_array = path.name.endswith(_SUFFIX) and ARRAY_NAME.fullmatch(name)
            if (is_array and name not in names) or is_draft(path.name):
                path.unlink(missing_ok=True)

    def size_bytes(self, names: Collection[str]) -> int:
        """What named arrays take on disk; a missing one takes nothing."""
        return sum(path.stat().st_size for name in names if (path := self._file(name)).exists())

    def _file(self, name: str) -> Path:
        return self._path / f"{name}{_SUFFIX}"


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the place, force it to the disk, rename it there: a reader sees all of it or nothing.

    Raises:
        InputError: the folder cannot be written to.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place "
            "(what is recorded stays)"
        ) from error


def is_draft(name: str) -> bool:
    """Whether a file of this name was being written by `write_whole`."""
    return _DRAFT.fullmatch(name) is not None
