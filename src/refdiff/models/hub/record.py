"""The record of a repository's folder: the files that were fetched and had the hub's hashes, as JSON.

It is written last, so the files it names were whole; their sizes and times, and where those differ their
hashes, say whether they still are. Nothing here uses the network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from refdiff.contracts.atomic_io import hash_file, write_file
from refdiff.contracts.plain_file import read_plain
from refdiff.contracts.progress import Progress

RECORD = "refdiff-fetch.json"

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RecordedFile:
    """A file that was compared with the hub's hash."""

    size_bytes: int
    sha256: str
    mtime_ns: int = 0
    """Modification time; 0 in older records, which do not have it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The files that were fetched into a folder, and where they are from."""

    repo: str
    revision: str | None
    commit: str
    licence: str | None
    files: Mapping[str, RecordedFile]

    def is_at(self, revision: str | None) -> bool:
        """Return whether this is a revision, as far as is known without the hub."""
        return revision in (None, self.revision) or self.is_commit(revision)

    def is_commit(self, revision: str | None) -> bool:
        """Return whether a revision is the recorded commit, which unlike a branch never moves."""
        return revision is not None and len(revision) >= 7 and self.commit.startswith(revision)


def read_record(folder: Path) -> Record | None:
    """Read the folder's record; None if it is missing or unreadable, so that files are verified again."""
    try:
        document = json.loads(read_plain(folder / RECORD))
        if document.pop("format") != _FORMAT:
            return None
        files = {name: RecordedFile(**file) for name, file in document.pop("files").items()}
        return Record(**document, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def is_unchanged(path: Path, recorded: RecordedFile, progress: Progress) -> bool:
    """Return whether a file is as recorded; it is read only if its size agrees and its time does not.

    A change that keeps both size and time is not noticed.

    Args:
        path: an existing file.
        recorded: the record of it.
        progress: receives a line before the file is read, which may take a while.
    """
    facts = path.stat()
    if facts.st_size != recorded.size_bytes:
        return False
    if facts.st_mtime_ns == recorded.mtime_ns:
        return True
    progress(f"verifying {path}, which was touched since it was fetched")
    return hash_file(path) == recorded.sha256


def write_record(folder: Path, record: Record) -> None:
    """Write a record, whole or not at all.

    Raises:
        OSError: the disk refuses.
    """
    write_file(folder / RECORD, json.dumps({"format": _FORMAT, **asdict(record)}, indent=2) + "\n")
