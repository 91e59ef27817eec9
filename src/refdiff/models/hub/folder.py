"""The folder that `refdiff fetch` fills: what belongs in it, and what is there.

    DIR/<owner>--<name>/                     the repository's files, named as on the hub
    DIR/<owner>--<name>/refdiff-fetch.json   commit, licence, sizes, hashes and times of whole files
    DIR/<owner>--<name>/.refdiff-fetch/      unfinished downloads
    DIR/.<owner>--<name>.lock                held while a process downloads

The record is written last: the files it names were whole. Sizes, times and hashes say whether they still are.
Nothing here uses the network, nor the hub's library.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from refdiff.contracts.atomic_io import hash_file, write_file
from refdiff.contracts.plain_file import read_plain
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.user_folders import cache_folder
from refdiff.errors import InputError, MissingDependencyError
from refdiff.models.hub.names import HubName, entry_of, expected_files, is_hidden, is_index
from refdiff.models.presets import known_source

UNFINISHED = ".refdiff-fetch"

_HUB = "https://huggingface.co"
FileState = Literal["present", "unverified", "missing", "differs"]
"""present: verified against the hub. unverified: there, and nothing is known to compare it with. differs:
there, but of another revision, cut off, or changed."""


class UnreachableError(MissingDependencyError):
    """The hub cannot be reached, or does not answer as one."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file according to the hub."""

    size_bytes: int
    sha256: str | None
    """None for small files, which are not in large-file storage."""
    blob: str | None
    """Git's hash, by which small files are verified."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A repository at one commit, according to the hub."""

    repo: str
    revision: str | None
    """The requested revision: a branch, a tag, or None for the newest."""
    commit: str
    licence: str | None
    files: Mapping[str, HubFile]


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One needed file."""

    name: str
    state: FileState
    size_bytes: int | None = None
    sha256: str | None = None
    mtime_ns: int | None = None
    """Modification time of a file that is present, read before it was compared."""

    @property
    def usable(self) -> bool:
        """True if a loader may read it."""
        return self.state in ("present", "unverified")


@dataclass(frozen=True, kw_only=True)
class RepoState:
    """The needed files of one repository, in one folder."""

    wanted: HubName
    folder: Path
    files: tuple[FileRow, ...]
    """Empty if it is not known without the hub."""
    record: Record | None = None
    listing: Listing | None = field(default=None, repr=False)
    """The hub's answer, if it was asked."""
    problem: str | None = None
    """Reason why the hub was not asked, or did not give the files."""

    @property
    def complete(self) -> bool:
        """True if the model can be loaded from here."""
        return bool(self.files) and all(row.usable for row in self.files)

    @property
    def verified(self) -> bool:
        """True if every file had the hub's hash when last read, and has the same size and time since."""
        return bool(self.files) and all(row.state == "present" for row in self.files)

    @property
    def settled(self) -> bool:
        """True if the hub need not be asked: all files are here, of a revision that cannot have moved."""
        revision = self.wanted.revision
        pinned = self.record is not None and self.record.is_commit(revision)
        return self.verified and (revision is None or pinned)

    @property
    def entry(self) -> Path:
        """The file or folder to load."""
        return entry_of(self.folder, [row.name for row in self.files], self.wanted.file)

    @property
    def commit(self) -> str | None:
        """The commit of the files, if it is known."""
        source = self.listing or self.record
        return source.commit if source else None

    @property
    def licence(self) -> str | None:
        """The licence that the repository's card names, if it is known."""
        source = self.listing or self.record or known_source(self.wanted.repo)
        return source.licence if source else None

    def recorded(self, name: str) -> RecordedFile | None:
        """Return the record of a file, if there is one."""
        return self.record.files.get(name) if self.record else None

    @property
    def lacking(self) -> tuple[FileRow, ...]:
        """The files that have to be downloaded."""
        return tuple(row for row in self.files if not row.usable)

    def url(self, name: str | None = None) -> str:
        """Return the address of a file, or of the list of all files."""
        revision = self.commit or self.wanted.revision or "main"
        place = f"tree/{revision}" if name is None else f"resolve/{revision}/{name}"
        return f"{hub_address()}/{self.wanted.repo}/{place}"

    @property
    def advice(self) -> str:
        """One line that says which files to put where."""
        names = [row.name for row in self.lacking]
        what = ", ".join(names[:2]) or "all files of the model"
        if len(names) > 2:
            what += f" and {len(names) - 2} more (refdiff fetch {self.wanted.text} --offline lists them)"
        return f"put {what} from {self.url()} into {self.folder}, each under the name it has there"


def hub_address() -> str:
    """Return the hub's address: the usual one, or the one in HF_ENDPOINT."""
    return (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")


def repo_folder(root: Path, repo: str) -> Path:
    """Return a repository's folder; the hub allows no "--" in names, so no two share one."""
    return root / repo.replace("/", "--")


def default_root() -> Path:
    """Return the folder that models are fetched to if none is named.

    Raises:
        InputError: this user has no home folder.
    """
    return cache_folder() / "checkpoints"


def inspect_folder(folder: Path, wanted: HubName, progress: Progress = silent) -> RepoState:
    """Find out what of a model is in a folder, without the hub.

    Recorded files are compared with the record (see `is_unchanged`), others by name only. If a recorded file
    was touched but not changed, its new time is recorded, so that it is hashed once; in a read-only folder it
    is hashed each time.

    Args:
        folder: the repository's, which may be missing.
        wanted: the model.
        progress: receives a line before a file is hashed.
    """
    record = read_record(folder)
    if record is not None and record.repo != wanted.repo:
        record = None
    names = needed_files(folder, wanted, record.files if record else ())
    rows = tuple(_row(folder, name, wanted, record, progress) for name in names)
    return RepoState(wanted=wanted, folder=folder, files=rows, record=_update_times(folder, rows, record))


def _row(folder: Path, name: str, wanted: HubName, record: Record | None, progress: Progress) -> FileRow:
    path, recorded = folder / name, record.files.get(name) if record else None
    if not path.is_file():
        return FileRow(name=name, state="missing", **_facts(recorded))
    if record is not None and not record.is_at(wanted.revision):
        return FileRow(name=name, state="differs", size_bytes=path.stat().st_size)
    if recorded is None:
        whole = not is_index(name) or shards_of(folder, name) is not None
        state: FileState = "unverified" if whole else "differs"
        return FileRow(name=name, state=state, size_bytes=path.stat().st_size)
    mtime_ns = path.stat().st_mtime_ns
    if not is_unchanged(path, recorded, progress):
        return FileRow(name=name, state="differs", **_facts(recorded))
    return FileRow(name=name, state="present", mtime_ns=mtime_ns, **_facts(recorded))


def _facts(recorded: RecordedFile | None) -> dict[str, Any]:
    return {"size_bytes": recorded.size_bytes, "sha256": recorded.sha256} if recorded else {}


def _update_times(folder: Path, rows: tuple[FileRow, ...], record: Record | None) -> Record | None:
    """Return the record with the times that the verified files have now, and write it if it changed."""
    if record is None:
        return None
    times = {row.name: row.mtime_ns for row in rows if row.mtime_ns is not None}
    files = {
        name: replace(file, mtime_ns=times.get(name, file.mtime_ns)) for name, file in record.files.items()
    }
    if files == record.files:
        return record
    updated = replace(record, files=files)
    with suppress(OSError):  # a folder that may only be read
        write_record(folder, updated)
    return updated


def needed_files(folder: Path, wanted: HubName, recorded: Collection[str]) -> tuple[str, ...]:
    """Return the files that the loaders need of a model.

    Args:
        folder: the repository's, which may be missing.
        wanted: the model.
        recorded: names of the files that were fetched into the folder, and may be missing now.

    Returns:
        Names relative to the folder; none if the folder does not determine them.
    """
    known = known_source(wanted.repo)
    if wanted.file is not None:
        names: tuple[str, ...] = (wanted.file,)
    elif known is not None and known.files:
        names = known.files_of(non_ema=wanted.non_ema)
    else:
        try:
            present = _names_in(folder) | set(recorded)
            names = expected_files(present, wanted.repo, non_ema=wanted.non_ema)
        except InputError:
            return ()
    shards = (shard for name in names if is_index(name) for shard in shards_of(folder, name) or ())
    return tuple(dict.fromkeys((*names, *shards)))


def shards_of(folder: Path, index: str) -> tuple[str, ...] | None:
    """Return the shards that an index names, relative to the folder; None if it is unreadable or empty."""
    path = folder / index
    try:
        names = set(json.loads(read_plain(path))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not names or not all(isinstance(name, str) and _is_plain(name) for name in names):
        return None
    return tuple(sorted((path.parent / name).relative_to(folder).as_posix() for name in names))


def _is_plain(name: str) -> bool:
    """Return whether a name is a file in the index's own folder, as the loaders require."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _names_in(folder: Path) -> set[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in names if name != RECORD and not is_hidden(name)}


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
