"""The uncompressed entries of a zip archive, found without extracting or unpacking anything.

Only archives with one interpretation are accepted: the directory ends the file, no two names differ in case
only, and an entry's own header agrees with the directory. Readers disagree about all others, so that a check
by one of them says nothing about what another one loads. Format: PKWARE's APPNOTE.TXT, 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_LARGEST_DIRECTORY = 32 << 20
"""Bytes. The directory of a full Stable Diffusion checkpoint has 0.3 MB."""

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_HEADER = struct.Struct("<4s5H3L2H")
_ZIP64 = 1
"""Kind of the extra field with 64-bit sizes."""

_FULL = 0xFFFFFFFF
"""In place of a number that is in a 64-bit field."""

_ENCRYPTED, _SIZES_FOLLOW = 1, 8
"""Bits of an entry's flags."""


class AmbiguousError(Exception):
    """An archive that two readers may read differently, or that claims too much."""


@dataclass(frozen=True)
class Entry:
    """One file of the archive, according to the directory."""

    name: str
    header: int
    """Place of its own header in the file."""
    nbytes: int
    stored: int
    """Bytes in the archive, less than `nbytes` for a compressed one."""
    method: int
    flags: int


def read_entries(stream: IO[bytes]) -> dict[str, Entry]:
    """Read the directory of an archive.

    Args:
        stream: of the whole file.

    Raises:
        AmbiguousError: names are doubled or lead outside, or the directory does not end the file.
        struct.error, UnicodeDecodeError: it is damaged.
    """
    found: dict[str, Entry] = {}
    names: set[str] = set()
    for entry in _parse(_directory(stream)):
        if entry.name.casefold() in names:
            raise AmbiguousError(f"it has two entries {entry.name!r}, or names that differ in case only")
        parts = entry.name.split("/")
        if {"", ".", ".."} & set(parts) or "\\" in entry.name or not entry.name.isprintable():
            raise AmbiguousError(f"its entry {entry.name!r} leads outside of it")
        names.add(entry.name.casefold())
        found[entry.name] = entry
    return found


def locate(stream: IO[bytes], entry: Entry) -> int:
    """Return where the bytes of an entry start in the file.

    Raises:
        AmbiguousError: it is compressed or encrypted, or its own header contradicts the directory.
    """
    if entry.method or entry.flags & _ENCRYPTED or entry.stored != entry.nbytes:
        raise AmbiguousError(f"its entry {entry.name} is compressed or encrypted, expected plain bytes")
    header = _HEADER.unpack(read_at(stream, entry.header, _HEADER.size))
    signature, _, flags, method, *_, stored, nbytes, name_length, extra_length = header
    name = read_at(stream, entry.header + _HEADER.size, name_length)
    if flags & _ENCRYPTED:
        raise AmbiguousError(f"its entry {entry.name} is encrypted according to its own header only")
    known = {entry.nbytes, _FULL} | ({0} if flags & _SIZES_FOLLOW else set())
    if (signature, method, name) != (b"PK\3\4", 0, entry.name.encode()) or not {stored, nbytes} <= known:
        raise AmbiguousError(f"its entry {entry.name} has a header that contradicts the directory")
    return entry.header + _HEADER.size + int(name_length) + int(extra_length)


def read_at(stream: IO[bytes], place: int, nbytes: int) -> bytes:
    """Return so many bytes of a file, all of them.

    Raises:
        EOFError: the file is shorter.
    """
    stream.seek(place)
    content = stream.read(nbytes)
    if len(content) != nbytes:
        raise EOFError(f"the file ends before byte {place + nbytes}")
    return content


def _directory(stream: IO[bytes]) -> bytes:
    end = stream.seek(0, 2) - _END.size
    signature, disk, first_disk, _, _, length, start, comment = _END.unpack(
        read_at(stream, max(end, 0), _END.size)
    )
    if signature != b"PK\5\6" or comment:
        raise AmbiguousError("its directory is not at its end: the file is truncated, or something follows")
    before = end - _LOCATOR.size
    locator = read_at(stream, before, _LOCATOR.size) if before >= 0 else b""
    if locator.startswith(b"PK\6\7"):
        end = _LOCATOR.unpack(locator)[2]
        large = _END_64.unpack(read_at(stream, end, _END_64.size))
        if large[0] != b"PK\6\6" or end + _END_64.size != before:
            raise AmbiguousError("its 64-bit directory is not where it says")
        for narrow, wide in ((length, large[8]), (start, large[9])):
            if narrow not in (wide, _FULL):
                raise AmbiguousError("it has two directories that contradict each other")
        length, start = large[8:]
    if disk or first_disk or start + length != end:
        raise AmbiguousError("its directory is not where it says")
    if length > _LARGEST_DIRECTORY:
        raise AmbiguousError(f"its directory has {length} bytes, more than {_LARGEST_DIRECTORY}")
    return read_at(stream, start, length)


def _parse(directory: bytes) -> Iterator[Entry]:
    place = 0
    while place < len(directory):
        fields = _ENTRY.unpack_from(directory, place)
        signature, _, _, flags, method, _, _, _, stored, nbytes = fields[:10]
        name_length, extra_length, comment_length, disk, _, _, header = fields[10:]
        place += _ENTRY.size
        name = directory[place : place + name_length].decode()
        extra = directory[place + name_length : place + name_length + extra_length]
        place += name_length + extra_length + comment_length
        if signature != b"PK\1\2" or disk or place > len(directory):
            raise AmbiguousError("its directory is damaged")
        nbytes, stored, header = _widen(extra, nbytes, stored, header)
        yield Entry(name, header, nbytes, stored, method, flags)


def _widen(extra: bytes, *narrow: int) -> tuple[int, ...]:
    """Return the numbers, those that do not fit 32 bits from the 64-bit field."""
    place, wide = 0, b""
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == _ZIP64:
            wide += extra[place + 4 : place + 4 + length]
        place += 4 + length
    values = iter(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8]))
    return tuple(next(values) if number == _FULL else number for number in narrow)
