"""Files and folders that appear whole or not at all.

Everything is written into a draft, a hidden sibling of its place (`.NAME.<12 hex digits>.partial`), forced to
the disk and renamed. A killed writer leaves a draft behind, never half a file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from refdiff.contracts.plain_file import open_plain
from refdiff.errors import InputError

_LOGGER = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20

_DRAFT = re.compile(r"\..+\.[0-9a-f]{12}\.(partial|replaced)", re.DOTALL)

_LOCK_POLL_SECONDS = 0.2


def hash_file(path: Path) -> str:
    """Return the sha256 of a regular file, in hexadecimal.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    with open_plain(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def draft_path(path: Path) -> Path:
    """Return a new hidden name next to `path`, to write its content to."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")


def is_draft(name: str) -> bool:
    """Return whether a file or folder of this name is a draft, or was moved aside for one."""
    return _DRAFT.fullmatch(name) is not None


def sync(path: Path) -> None:
    """Force a file, or the list of names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
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
    """Rename the draft to its place.

    Returns:
        Where the file went that was there before, to be deleted in the end; None where there was none.
    """
    aside = draft.with_suffix(".replaced") if os.path.lexists(path) else None
    with report_write_errors(path):
        if aside is None:
            undo.callback(path.unlink, missing_ok=True)
        else:
            path.rename(aside)
            undo.callback(aside.replace, path)
        draft.rename(path)
    return aside


def place_folder(draft: Path, target: Path) -> None:
    """Rename a finished folder to its place.

    A folder that is there steps aside first, comes back if the rename fails, and is deleted otherwise.

    Raises:
        OSError: the disk refuses.
    """
    if not target.exists():
        draft.rename(target)
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


@contextmanager
def lock_file(path: Path, *, on_busy: Callable[[], object]) -> Iterator[None]:
    """Hold an advisory lock; the system releases the lock of a process that dies.

    Args:
        path: the lock's file, made if it is missing.
        on_busy: called once if another process holds the lock; it raises to give up, else the lock is
            waited for.

    Raises:
        OSError: the file cannot be opened for writing.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _take_lock(handle):
            on_busy()
            while not _take_lock(handle):
                time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _take_lock(handle: int) -> bool:
    """Return whether the lock was free."""
    import fcntl  # POSIX only

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
