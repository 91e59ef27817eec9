from pathlib import Path

import pytest

from refdiff.contracts.atomic_io import write_files
from refdiff.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_files_appear_and_nothing_else(tmp_path: Path):
    write_files({tmp_path / "a.png": b"a", tmp_path / "b.json": b"b"})
    assert names(tmp_path) == ["a.png", "b.json"]
    assert (tmp_path / "b.json").read_bytes() == b"b"


def test_an_existing_file_needs_overwrite_and_is_then_replaced(tmp_path: Path):
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    with pytest.raises(InputError, match=r"a\.png exists; .*--overwrite"):
        write_files({target: b"new"})
    assert target.read_bytes() == b"old"
    write_files({target: b"new"}, overwrite=True)
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("failing_step", [1, 2, 3])
def test_a_rename_that_fails_brings_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_step: int
):
    """Steps: the old a.png goes aside, the new one takes its place, b.json takes its."""
    (tmp_path / "a.png").write_bytes(b"old")
    real, calls = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == failing_step:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="Permission denied"):
        write_files({tmp_path / "a.png": b"new", tmp_path / "b.json": b"b"}, overwrite=True)
    assert names(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_ctrl_c_between_two_files_leaves_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if target.name == "b.json":
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        write_files({tmp_path / "a.png": b"a", tmp_path / "b.json": b"b"})
    assert names(tmp_path) == []


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        write_files({tmp_path / "nowhere" / "a.png": b"a"})
    with pytest.raises(InputError, match="is no plain file"):
        write_files({tmp_path: b"a"}, overwrite=True)
