"""Several result files that appear together or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from refdiff.errors import InputError


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
    """Write all files beside their places, then rename them there; undo everything if one step fails.

    Raises:
        InputError: a place is taken, read-only or full.
    """
    check_targets(files, overwrite=overwrite)
    mark = uuid.uuid4().hex[:12]
    try:
        with ExitStack() as undo:
            drafts = {path: path.with_name(f".{path.name}.{mark}.partial") for path in files}
            for path, data in files.items():
                undo.callback(drafts[path].unlink, missing_ok=True)
                _write(drafts[path], path, data)
            asides = [_place(drafts[path], path, undo) for path in files]
            undo.pop_all()
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or next(iter(files))}: {error.strerror or error}; "
            "free space or choose another place"
        ) from error
    for aside in asides:
        if aside is not None:
            aside.unlink(missing_ok=True)


def _write(draft: Path, path: Path, data: bytes) -> None:
    with _about(path), draft.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _place(draft: Path, path: Path, undo: ExitStack) -> Path | None:
    """Rename the draft to its place; what was there steps aside, and is handed back to be deleted."""
    aside = draft.with_suffix(".replaced") if os.path.lexists(path) else None
    with _about(path):
        if aside is None:
            undo.callback(path.unlink, missing_ok=True)
        else:
            path.rename(aside)
            undo.callback(aside.replace, path)
        draft.rename(path)
    return aside


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """What fails in here is told of the file the caller asked for, not of its draft."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
