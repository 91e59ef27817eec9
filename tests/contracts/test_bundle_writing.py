"""Bundles are written whole or not at all, and never over something else."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from refdiff.contracts.atomic_io import exchange_names, open_draft_folder, place_folder
from refdiff.contracts.bundle import (
    open_bundle,
    write_bundle,
)
from refdiff.errors import BundleError, InputError
from tests.support.small_bundle import SPEC, fill


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with write_bundle(tmp_path / "bundle") as writer:
        fill(writer)
    return tmp_path / "bundle"


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), write_bundle(tmp_path / "b") as writer:
        fill(writer)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_draft_without_a_description_becomes_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="without `describe`"), write_bundle(tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_that_loads(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_bundle import fill
        from refdiff.contracts.bundle import write_bundle
        with write_bundle({str(tmp_path / "b")!r}) as writer:
            fill(writer)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    process = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "b").exists()
    left, lock = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert (left.name[:3], lock.name) == (".b.", left.with_suffix(".lock").name)
    with pytest.raises(BundleError, match="what an interrupted export left behind"):
        open_bundle(left)
    with write_bundle(tmp_path / "other") as writer:
        fill(writer)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_existing_target_needs_overwrite(bundle: Path) -> None:
    message = "exists; choose another place, or allow overwriting"
    with pytest.raises(InputError, match=message), write_bundle(bundle):
        pytest.fail("the block must not run")


def test_overwrite_replaces_a_bundle_and_its_plans(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    with write_bundle(bundle, overwrite=True) as writer:
        fill(writer, weights=b"other weights")
        assert open_bundle(bundle).manifest.files["sd_text.onnx.data"].size_bytes == 7
    assert open_bundle(bundle).manifest.files["sd_text.onnx.data"].size_bytes == 13
    assert not (bundle / "engines").exists()
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_failed_overwrite_keeps_the_old_bundle(bundle: Path) -> None:
    with pytest.raises(ZeroDivisionError), write_bundle(bundle, overwrite=True):
        raise ZeroDivisionError
    assert open_bundle(bundle).spec == SPEC
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_bundle_is_replaced_without_a_moment_in_which_there_is_none(bundle: Path) -> None:
    seen = []

    def watch(one: Path, other: Path) -> bool:
        done = exchange_names(one, other)
        seen.append((done, open_bundle(bundle).manifest.files["sd_text.onnx.data"].size_bytes))
        return done

    with open_draft_folder(bundle) as draft:
        shutil.copytree(bundle, draft, dirs_exist_ok=True)
        place_folder(draft, bundle, exchange=watch)
    if sys.platform == "linux":
        assert seen == [(True, 7)]
    assert list(bundle.parent.iterdir()) == [bundle]


@pytest.mark.parametrize(
    "kind", ["photos", "file", "link", "bundle with photos", "foreign manifest", "empty"]
)
def test_overwrite_never_deletes_what_is_not_a_bundle(bundle: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("text")
    elif kind == "link":
        target.symlink_to(bundle)
    elif kind == "bundle with photos":
        target = bundle
        (target / "photo.jpg").write_bytes(b"x")
    else:
        target.mkdir()
        if kind != "empty":
            (target / "photo.jpg").write_bytes(b"x")
        if kind == "foreign manifest":
            (target / "manifest.json").write_text('{"name": "a web app"}')
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(InputError, match="not modified"), write_bundle(target, overwrite=True):
        pytest.fail("the block must not run")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"), write_bundle(tmp_path / "b") as writer:
        fill(writer)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "photo.jpg").write_bytes(b"x")
    assert [p.name for p in tmp_path.rglob("*")] == ["b", "photo.jpg"]


def test_parents_are_made(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "a" / "b" / "c") as writer:
        fill(writer)
    assert open_bundle(tmp_path / "a" / "b" / "c").spec == SPEC


def test_a_file_as_parent_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(InputError, match=r"cannot write bundle .*file/b: "),
        write_bundle(tmp_path / "file" / "b"),
    ):
        pytest.fail("the block must not run")


def test_a_read_only_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: object, **kwargs: object) -> None:  # permissions do not stop root
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(InputError, match=r"cannot write bundle .*/b: Permission denied"),
        write_bundle(tmp_path / "b"),
    ):
        pytest.fail("the block must not run")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = r"cannot write bundle .*/b: No space left on device"
    with pytest.raises(InputError, match=message), write_bundle(tmp_path / "b") as writer:
        fill(writer)
    assert list(tmp_path.iterdir()) == []


def test_another_files_error_in_the_block_stays_what_it_is(tmp_path: Path) -> None:
    elsewhere = str(tmp_path.parent / "weights.safetensors")
    with pytest.raises(FileNotFoundError), write_bundle(tmp_path / "b"):
        raise FileNotFoundError(errno.ENOENT, "No such file", elsewhere)
    with pytest.raises(PermissionError), write_bundle(tmp_path / "b"):
        raise PermissionError(errno.EACCES, "Permission denied", elsewhere)
