"""Zip archives with one interpretation: every contradiction between two headers is refused."""

import io
import struct
import zipfile

import pytest

from refdiff.models.zip_entries import AmbiguousError, locate, read_entries

CONTENT = {"a/data.pkl": b"pickle", "a/data/0": b"0123456789", "a/empty": b""}
FULL = 0xFFFFFFFF


def archive(content: dict[str, bytes] = CONTENT, **options: bool) -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        for name, data in content.items():
            with written.open(name, "w", **options) as entry:  # type: ignore[arg-type]
                entry.write(data)
    return bytearray(stream.getvalue())


def read(content: bytes) -> dict[str, bytes]:
    stream = io.BytesIO(content)
    entries = read_entries(stream)
    return {
        name: content[start : start + entry.nbytes]
        for name, entry in entries.items()
        if (start := locate(stream, entry)) is not None
    }


def with_zip64_end(content: bytearray, *, length: int | None = None, start: int | None = None) -> bytearray:
    """The same archive with a 64-bit directory, which may state something else."""
    fields = struct.unpack("<4s4H2LH", content[-22:])
    wide = [fields[5] if length is None else length, fields[6] if start is None else start]
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, fields[3], fields[4], *wide)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(content) - 22, 1)
    return content[:-22] + end + locator + content[-22:]


def test_entries_are_those_that_the_standard_library_reads() -> None:
    assert read(archive()) == CONTENT
    assert read(archive(force_zip64=True)) == CONTENT
    assert read(with_zip64_end(archive())) == CONTENT


def test_a_directory_with_64_bit_numbers_alone_is_read() -> None:
    content = with_zip64_end(archive())
    content[-10:-2] = struct.pack("<2L", FULL, FULL)
    assert read(content) == CONTENT


@pytest.mark.parametrize("wrong", [{"length": 1}, {"start": 5}, {"length": 1 << 60}, {"start": 1 << 63}])
@pytest.mark.parametrize("narrow", [True, False])
def test_two_directories_that_differ_are_refused(wrong: dict[str, int], narrow: bool) -> None:
    content = with_zip64_end(archive(), **wrong)
    if not narrow:
        content[-10:-2] = struct.pack("<2L", FULL, FULL)
    with pytest.raises(AmbiguousError, match=r"contradict each other|not where it says"):
        read(content)


def place_of(content: bytearray, signature: bytes, name: str) -> int:
    """Where the header of this kind with this name starts."""
    offset = {b"PK\3\4": 30, b"PK\1\2": 46}[signature]
    place = content.index(name.encode())
    while content[place - offset : place - offset + 4] != signature:
        place = content.index(name.encode(), place + 1)
    return place - offset


@pytest.mark.parametrize(
    ("signature", "offset", "value"),
    [
        (b"PK\3\4", 0, b"PK\3\5"),
        (b"PK\3\4", 6, b"\1\0"),
        (b"PK\3\4", 8, b"\x08\0"),
        (b"PK\3\4", 18, b"\xff\0\0\0"),
        (b"PK\3\4", 22, b"\xff\0\0\0"),
        (b"PK\3\4", 26, b"\1\0"),
        (b"PK\3\4", 30, b"A/DATA"),
        (b"PK\1\2", 8, b"\1\0"),
        (b"PK\1\2", 10, b"\x08\0"),
        (b"PK\1\2", 20, b"\1\0\0\0"),
        (b"PK\1\2", 24, b"\xff\0\0\0"),
        (b"PK\1\2", 34, b"\1\0"),
        (b"PK\1\2", 42, b"\1\0\0\0"),
        (b"PK\1\2", 46, b"b/data"),
    ],
)
def test_a_header_that_contradicts_the_directory_is_refused(
    signature: bytes, offset: int, value: bytes
) -> None:
    content = archive()
    start = place_of(content, signature, "a/data/0") + offset
    content[start : start + len(value)] = value
    with pytest.raises(AmbiguousError):
        read(content)


def test_an_entry_that_ends_behind_the_file_has_no_bytes() -> None:
    content = archive()
    place = place_of(content, b"PK\1\2", "a/data/0")
    content[place + 42 : place + 46] = struct.pack("<L", len(content) - 5)
    with pytest.raises(EOFError):
        read(content)


def test_a_huge_directory_is_not_read() -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 40 << 20, 0, 0)
    with pytest.raises(AmbiguousError, match="more than"):
        read(bytes(40 << 20) + end)


@pytest.mark.parametrize("size", [0, 5, 21, 22, 40])
def test_a_file_without_a_directory_is_refused(size: int) -> None:
    with pytest.raises((AmbiguousError, EOFError)):
        read(bytes(size))
