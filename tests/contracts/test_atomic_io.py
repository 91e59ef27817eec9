import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from refdiff.contracts.atomic_io import (
    draft_path,
    exchange_names,
    is_draft,
    open_draft,
    open_draft_folder,
    place_folder,
    report_write_errors,
    sweep_drafts,
    write_file,
    write_files,
)
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


@pytest.mark.parametrize("failing_step", [1, 2])
def test_a_rename_that_fails_brings_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_step: int
):
    """Steps: a.png is replaced, b.json takes its place."""
    (tmp_path / "a.png").write_bytes(b"old")
    real, calls = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == failing_step:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, target)

    monkeypatch.setattr(Path, "replace", rename)
    with pytest.raises(InputError, match="Permission denied"):
        write_files({tmp_path / "a.png": b"new", tmp_path / "b.json": b"b"}, overwrite=True)
    assert names(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_ctrl_c_between_two_files_leaves_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = Path.replace

    def rename(path: Path, target: Path) -> Path:
        if target.name == "b.json":
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "replace", rename)
    with pytest.raises(KeyboardInterrupt):
        write_files({tmp_path / "a.png": b"a", tmp_path / "b.json": b"b"})
    assert names(tmp_path) == []


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        write_files({tmp_path / "nowhere" / "a.png": b"a"})
    with pytest.raises(InputError, match="is no plain file"):
        write_files({tmp_path: b"a"}, overwrite=True)


@pytest.fixture
def listen() -> Iterator[Callable[[Callable[[str, str], None]], None]]:
    """Hear of every change of a name before it is made: event and new name."""
    listeners: list[Callable[[str, str], None]] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if listeners and event in ("os.rename", "os.remove", "os.link"):
            listeners[0](event, str(arguments[0 if event == "os.remove" else 1]))

    sys.addaudithook(hear)
    yield listeners.append
    listeners.clear()


def test_a_file_that_is_replaced_is_there_at_every_moment(tmp_path: Path, listen: Any):
    targets = [tmp_path / "a.png", tmp_path / "b.json"]
    for target in targets:
        target.write_bytes(b"old")
    present: list[bool] = []
    listen(lambda event, name: present.append(all(target.exists() for target in targets)))
    write_files(dict.fromkeys(targets, b"new"), overwrite=True)
    assert len(present) >= 6
    assert all(present)
    assert names(tmp_path) == ["a.png", "b.json"]


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path):
    target = tmp_path / "a.json"
    write_file(target, "old é")
    with pytest.raises(ZeroDivisionError), open_draft(target) as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert target.read_text(encoding="utf-8") == "old é"
    assert names(tmp_path) == ["a.json"]
    write_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "text").write_text(text)
    return path


def killed(target: Path, *steps: str) -> str:
    """What a killed writer of a folder leaves; the name of its lock."""
    stem = draft_path(target).with_suffix("")
    for step in steps:
        folder_of(stem.with_suffix(stem.suffix + step), step)
    lock = stem.with_suffix(stem.suffix + ".lock")
    lock.touch()
    return lock.name


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, can_exchange: bool):
    target = folder_of(tmp_path / "b", "old")
    with open_draft_folder(target) as draft:
        (draft / "text").write_text("new")
        place_folder(draft, target, exchange=exchange_names if can_exchange else lambda one, other: False)
    assert (target / "text").read_text() == "new"
    assert names(tmp_path) == ["b"]


def test_a_last_rename_that_fails_brings_the_old_folder_back(tmp_path: Path):
    target = folder_of(tmp_path / "b", "old")
    with pytest.raises(FileNotFoundError), open_draft_folder(target) as draft:
        draft.rmdir()
        place_folder(draft, target, exchange=lambda one, other: False)
    assert (target / "text").read_text() == "old"
    assert names(tmp_path) == ["b"]


def test_the_next_writer_deletes_what_a_killed_one_left(tmp_path: Path):
    killed(tmp_path / "a", ".partial")
    killed(tmp_path / "b", ".partial", ".replaced")
    folder_of(tmp_path / "b", "new")
    with open_draft_folder(tmp_path / "c"):
        pass
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b" / "text").read_text() == "new"


def test_a_folder_that_was_moved_aside_comes_back_if_its_writer_was_killed(tmp_path: Path):
    killed(tmp_path / "b.v1", ".partial", ".replaced")
    sweep_drafts(tmp_path)
    assert names(tmp_path) == ["b.v1"]
    assert (tmp_path / "b.v1" / "text").read_text() == ".replaced"


def test_a_draft_in_use_and_folders_of_others_are_not_deleted(tmp_path: Path):
    folder_of(tmp_path / ".b.0123456789ab.partial", "no lock file, so not ours")
    (tmp_path / ".b.lock").touch()
    with open_draft_folder(tmp_path / "b") as draft:
        before = names(tmp_path)
        sweep_drafts(tmp_path)
        assert names(tmp_path) == before
        assert draft.is_dir()
    assert names(tmp_path) == [".b.0123456789ab.partial", ".b.lock"]


def test_only_names_made_here_are_drafts(tmp_path: Path):
    draft = draft_path(tmp_path / "a.png")
    assert is_draft(draft.name)
    assert is_draft(draft.with_suffix(".replaced").name)
    assert not any(map(is_draft, ["a.png", ".a.partial", ".a.png.0123456789ab", "a.0123456789ab.partial"]))


def test_a_disk_that_refuses_is_one_line_with_the_target(tmp_path: Path):
    with (
        pytest.raises(InputError, match=r"^cannot write the cache: No such file or directory; go elsewhere$"),
        report_write_errors("the cache", "go elsewhere"),
    ):
        write_file(tmp_path / "nowhere" / "a", b"")
