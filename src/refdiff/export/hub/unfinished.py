"""The folder for downloads that are not finished: one process at a time, and room enough on the disk.

In: a repository's folder, and what it lacks. Out: the folder beside its files that drafts are written to.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from refdiff.errors import InputError
from refdiff.export.hub.client import draft_of
from refdiff.export.hub.folder import UNFINISHED, Listing, RepoState


@contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """The folder for unfinished downloads, which one process at a time may write to.

    It is deleted, still locked, only when all is well: what a stopped download left is continued.

    Args:
        folder: the repository's; made if it is missing.

    Raises:
        InputError: another process is at work in it.
        OSError: the disk does not take it.
    """
    unfinished = folder / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    with (unfinished / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is fetching into {folder}; wait for it to end") from error
        if not _is_in_place(lock):
            raise InputError(f"another process has just ended fetching into {folder}; run it again")
        yield unfinished
        for draft in unfinished.glob("*.partial"):  # before the lock, which the next process could then take
            draft.unlink()
        # A file system over the network may keep the open lock until it is closed: an empty folder stays.
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_in_place(lock: TextIO) -> bool:
    """Whether an open file is still the one at its path: else its lock keeps nobody out."""
    path = Path(lock.name)
    return path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())


def check_space(plan: RepoState, listing: Listing, unfinished: Path) -> None:
    """Refuse a download that the disk has no room for.

    Args:
        plan: what is lacking.
        listing: how large it is.
        unfinished: the folder of `working_folder`, where a part of it may be.

    Raises:
        InputError: too little space is left.
    """
    files = {row.name: listing.files[row.name] for row in plan.lacking}
    drafts = {draft_of(file, name, unfinished) for name, file in files.items()}
    started = sum(draft.stat().st_size for draft in drafts if draft.exists())
    needed = sum(file.size_bytes for file in files.values()) - started
    free = shutil.disk_usage(unfinished).free
    if needed > free:
        raise InputError(
            f"{plan.wanted.repo} needs {needed / 1e9:.2f} GB more and {plan.folder} has {free / 1e9:.2f} GB "
            "free; free space or choose another folder"
        )
