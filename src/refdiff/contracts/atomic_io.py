"""Files and folders that appear whole or not at all.

Everything is written into a draft, a hidden sibling of its place (`.NAME.<12 hex digits>.partial`), forced to
the disk and renamed. A killed writer leaves a draft behind, never half a file; those of folders have a lock
file (`.NAME.<12 hex digits>.lock`) and are deleted by the next writer.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from refdiff.contracts.file_lock import lock_file
from refdiff.contracts.plain_file import open_plain
from refdiff.errors import InputError

_LOGGER = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 18

_DRAFT = re.compile(r"\..+\.[0-9a-f]{12}\.(partial|replaced)", re.DOTALL)

_DRAFT_LOCK = re.compile(r"\..+\.[0-9a-f]{12}\.lock", re.DOTALL)


def hash_file(path: Path) -> str:
    """Return the sha256 of a regular file, in hexadecimal.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
    with open_plain(path) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def draft_path(path: Path) -> Path:
    """Return a new hidden name next to `path`, to write its content to."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")


def is_draft(name: str) -> bool:
    """Return whether a file or folder of this name is a draft, or was moved aside for one."""
    return _DRAFT.fullmatch(name) is not None


def sync(path: Path) -> None:
    """Force a file, or the list of names in a folder, to the disk; Windows has no call for the latter."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def report_write_errors(
    what: Path | str, advice: str = "free space or choose another place"
) -> Iterator[None]:
    """Turn an OSError into one line for the user.

    Args:
        what: the target, as the user knows it.
        advice: what to do.

    Raises:
        InputError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {what}: {error.strerror or error}; {advice}") from error


@contextmanager
def open_draft(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends well, and is deleted otherwise.

    Raises:
        OSError: the disk refuses.
    """
    draft = draft_path(path)
    try:
        with draft.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Write or replace one file.

    Raises:
        OSError: the disk refuses.
    """
    with open_draft(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def check_targets(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse places that `write_files` could not write to, before any long work.

    Raises:
        InputError: a folder is missing, or something is in the way.
    """
    for path in paths:
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: {path.parent} is not a folder; make it first")
        if not os.path.lexists(path):
            continue
        if not path.is_file():
            raise InputError(f"cannot write {path}: it exists and is no plain file; choose another place")
        if not overwrite:
            raise InputError(f"{path} exists; choose another place, or allow overwriting (--overwrite)")


def write_files(files: Mapping[Path, bytes], *, overwrite: bool = False) -> None:
    """Write several files that appear together: if one step fails, all of them are undone.

    Raises:
        InputError: a place is taken, read-only or full.
    """
    check_targets(files, overwrite=overwrite)
    with report_write_errors(next(iter(files), "")), ExitStack() as undo:
        drafts = {path: draft_path(path) for path in files}
        for path, data in files.items():
            undo.callback(drafts[path].unlink, missing_ok=True)
            with report_write_errors(path):
                drafts[path].write_bytes(data)
                sync(drafts[path])
        moved_aside = [_place_file(drafts[path], path, undo) for path in files]
        undo.pop_all()
    _LOGGER.info("wrote %s", ", ".join(map(str, files)))
    for aside in moved_aside:
        if aside is not None:
            aside.unlink(missing_ok=True)


def _place_file(draft: Path, path: Path, undo: ExitStack) -> Path | None:
    """Rename the draft to its place; a file that is there gets a second name first, so that none is missing.

    Returns:
        The second name of the file that was there, to be deleted in the end; None where there was none.
    """
    aside = draft.with_suffix(".replaced") if os.path.lexists(path) else None
    with report_write_errors(path):
        if aside is None:
            undo.callback(path.unlink, missing_ok=True)
        else:
            undo.callback(_put_back, aside, path)
            try:
                aside.hardlink_to(path)
            except OSError:  # a file system without hard links
                path.rename(aside)
        draft.replace(path)
    return aside


def _put_back(aside: Path, path: Path) -> None:
    if os.path.lexists(aside):
        aside.replace(path)
        aside.unlink(missing_ok=True)  # two names of one file are not exchanged by a rename


@contextmanager
def open_draft_folder(target: Path) -> Iterator[Path]:
    """Make a folder to write into, next to `target`; what is left of it when the block ends is deleted.

    A lock file next to it says that it is in use. What killed processes left behind next to `target` is
    deleted first, and a folder that one of them had moved aside comes back.

    Raises:
        OSError: the disk refuses.
    """
    sweep_drafts(target.parent)
    draft = draft_path(target)
    lock = _lock_of(draft)
    try:
        with lock_file(lock, on_busy=lambda: None):
            try:
                draft.mkdir()
                yield draft
            finally:
                _delete_draft(lock)
    finally:
        _delete_lock(lock)


def sweep_drafts(folder: Path) -> None:
    """Delete the drafts in a folder whose process has ended; anything without a lock file of ours stays."""
    for lock in folder.glob(".*.lock"):
        if _DRAFT_LOCK.fullmatch(lock.name) is None:
            continue
        with suppress(OSError, _InUseError):
            with lock_file(lock, on_busy=_refuse, required=True):
                _delete_draft(lock)
            _delete_lock(lock)


class _InUseError(Exception):
    """Another process holds the lock."""


def _refuse() -> None:
    raise _InUseError


def _lock_of(draft: Path) -> Path:
    return draft.with_suffix(".lock")


def _delete_draft(lock: Path) -> None:
    """Delete a draft folder; the caller holds the lock."""
    aside, target = lock.with_suffix(".replaced"), lock.with_name(lock.name[1 : -len(".123456789abc.lock")])
    if aside.is_dir() and not os.path.lexists(target):
        aside.rename(target)
    for left in (lock.with_suffix(".partial"), aside):
        shutil.rmtree(left, ignore_errors=True)


def _delete_lock(lock: Path) -> None:
    """Delete the lock file of a deleted draft, after its release: Windows deletes no open file."""
    if not any(os.path.lexists(lock.with_suffix(suffix)) for suffix in (".partial", ".replaced")):
        lock.unlink(missing_ok=True)


def exchange_names(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system cannot do that."""
    if sys.platform != "linux":
        return False
    import ctypes  # late: only an overwriting export needs it

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # an older C library
        return False
    return bool(rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


_AT_CWD = -100
_RENAME_EXCHANGE = 2
"""Source: linux/fcntl.h and linux/fs.h."""


def place_folder(
    draft: Path, target: Path, *, exchange: Callable[[Path, Path], bool] = exchange_names
) -> None:
    """Rename a finished folder to its place; the caller deletes what is then left of the draft.

    A folder that is there changes places with the draft. Where the system cannot exchange names, it steps
    aside first, comes back if the rename fails, and is deleted otherwise; between the two renames the target
    does not exist, and `sweep_drafts` repairs that.

    Raises:
        OSError: the disk refuses.
    """
    if not target.exists():
        draft.rename(target)
        sync(target.parent)
        return
    if exchange(draft, target):
        sync(target.parent)
        return
    aside = draft.with_suffix(".replaced")
    target.rename(aside)
    try:
        draft.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
