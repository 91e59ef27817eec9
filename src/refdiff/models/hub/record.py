"""What was fetched into a repository's folder and compared with the hub's hashes: one small JSON file.

In and out: `Record`. It is written last, so what it names was whole; whether a file still is, is told by its
size and time, and by its hash where those do not settle it. Nothing here touches the network.

The folder for downloads that are not finished: one process at a time, and room enough on the disk.

In: a repository's folder, and what it lacks. Out: the folder beside its files that drafts are written to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from refdiff.contracts.atomic_io import hash_file, write_file

RECORD = "refdiff-fetch.json"

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RecordedFile:
    """A file that was compared with the hub's hash."""

    size_bytes: int
    sha256: str
    mtime_ns: int = 0
    """When it was last changed; 0, of an older record, settles nothing."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was fetched into a folder."""

    repo: str
    revision: str | None
    commit: str
    licence: str | None
    files: Mapping[str, RecordedFile]

    def is_at(self, revision: str | None) -> bool:
        """Whether this is a revision, as far as can be told without the hub."""
        return revision in (None, self.revision) or self.is_commit(revision)

    def is_commit(self, revision: str | None) -> bool:
        """Whether a revision is the recorded commit, which never moves as a branch does."""
        return revision is not None and len(revision) >= 7 and self.commit.startswith(revision)


def read_record(folder: Path) -> Record | None:
    """The folder's record; None where there is none that can be read, so that files are verified anew."""
    try:
        document = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if document.pop("format") != _FORMAT:
            return None
        files = {name: RecordedFile(**file) for name, file in document.pop("files").items()}
        return Record(**document, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def is_unchanged(path: Path, recorded: RecordedFile, tell: Callable[[str], None]) -> bool:
    """Whether a file is what was recorded; it is read only where its size is right and its time is not.

    A change that keeps size and time goes unnoticed.

    Args:
        path: of a file that exists.
        recorded: what it was.
        tell: told one line before a file is read, which may take a while.
    """
    facts = path.stat()
    if facts.st_size != recorded.size_bytes:
        return False
    if facts.st_mtime_ns == recorded.mtime_ns:
        return True
    tell(f"verifying {path}, which was touched since it was fetched")
    return hash_file(path) == recorded.sha256


def write_record(folder: Path, record: Record) -> None:
    """Put a record down, whole or not at all.

    Raises:
        OSError: the disk does not take it.
    """
    write_file(folder / RECORD, json.dumps({"format": _FORMAT, **asdict(record)}, indent=2) + "\n")
