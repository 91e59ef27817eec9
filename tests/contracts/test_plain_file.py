"""Files of unknown origin: what is no file, and arrays that claim more than they hold."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.json_fields import read_json
from refdiff.contracts.plain_file import open_plain, read_archive, read_array, read_plain
from refdiff.errors import InputError
from tests.support.fuzzing import fuzz, fuzz_file


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_a_fifo_a_device_and_a_folder_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"not a regular file|directory"):
            open_plain(path)
        with pytest.raises(InputError, match="is not readable JSON"):
            read_json(path, InputError, "export again")


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read_plain(tmp_path / "a") == b"abc"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        np.array("text"),
        np.zeros((0, 4), np.float16),
        np.array(True),
        np.arange(3, dtype=">i4"),
    ],
)
def test_arrays_come_back_as_numpy_reads_them(array: np.ndarray) -> None:
    again = read_array(npy(array))
    expected = np.load(io.BytesIO(npy(array)))
    np.testing.assert_array_equal(again, expected)
    assert (again.dtype, again.shape) == (expected.dtype, expected.shape)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(2, 3)", b"(9, 9)"),
        (b"(2, 3)", b"(-2,3)"),
        (b"(2, 3)", b"[2, 3]"),
        (b"(2, 3)", b"(((((("),
        (b"'<f4'", b"'|O8'"),
        (b"'<f4'", b"'?!?'"),
        (b"NUMPY\x01", b"NUMPY\x09"),
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_refused(old: bytes, new: bytes) -> None:
    content = npy(np.zeros((2, 3), np.float32))
    assert old in content
    with pytest.raises(ValueError, match=r"header|bytes|shape|holds|start"):
        read_array(content.replace(old, new))


def test_an_archive_that_grows_beyond_what_deflate_can_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(npz(a=np.zeros(1000)))
    assert read_archive(path)["a"].shape == (1000,)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy(np.zeros(10_000_000, np.uint8)))
    with pytest.raises(ValueError, match="holds more than"):
        read_archive(path)


def test_a_doubled_entry_and_one_that_is_no_array_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for names in (("a.npy", "a.npy"), ("a.txt",)):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                if name in archive.namelist():
                    with pytest.warns(UserWarning, match="Duplicate"):
                        archive.writestr(name, npy(np.zeros(1)))
                else:
                    archive.writestr(name, npy(np.zeros(1)))
        with pytest.raises(ValueError, match="doubled, or is not an array"):
            read_archive(path)


def test_any_array_file_is_read_or_refused() -> None:
    samples = [npy(np.arange(6, dtype=np.float32).reshape(2, 3)), npy(np.array("text"))]
    count = fuzz(read_array, samples, seed=1, allowed=ValueError)
    assert count.refused


def test_any_archive_is_read_or_refused(tmp_path: Path) -> None:
    samples = [npz(**{"unet/in/a": np.arange(6.0), "unet/in/b": np.array("unet/in/a")})]
    count = fuzz_file(read_archive, samples, tmp_path / "a.npz", seed=2, allowed=(ValueError, OSError))
    assert count.refused
