"""The folder that `refdiff fetch` fills: what belongs in it, and what is there.

    DIR/<owner>--<name>/            the repository's files, named as on the hub
    DIR/<owner>--<name>/refdiff-fetch.json
                                    commit, licence, sizes, hashes and times; written last, so only of whole
                                    files
    DIR/<owner>--<name>/.refdiff-fetch/
                                    downloads that are not finished

Nothing here touches the network or needs more than this package does on a device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from refdiff.errors import InputError, MissingDependencyError
from refdiff.models.hub.names import HubName, entry_of, expected_files, is_hidden, is_index
from refdiff.models.hub.record import RECORD, Record, RecordedFile, is_unchanged, read_record, write_record
from refdiff.models.presets import known_source

Tell = Callable[[str], None]

UNFINISHED = ".refdiff-fetch"

_HUB = "https://huggingface.co"
FileState = Literal["present", "unverified", "missing", "differs"]
"""present: there, and what the hub has. unverified: there, and nothing is known to compare it with. differs:
there, and something else: of another revision, cut off, or changed."""


class UnreachableError(MissingDependencyError):
    """The hub cannot be reached, or does not answer as one."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """What the hub says of a file."""

    size_bytes: int
    sha256: str | None
    """None of small files, which are not in large-file storage."""
    blob: str | None
    """Git's own hash, which small files are checked by."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the hub says of a repository at one commit."""

    repo: str
    revision: str | None
    """As it was asked for: a branch, a tag, or None for the newest."""
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
    """When a file that is present was last changed; read before it was compared."""

    @property
    def usable(self) -> bool:
        """Whether a loader may read it."""
        return self.state in ("present", "unverified")


@dataclass(frozen=True, kw_only=True)
class RepoState:
    """The needed files of one repository, in one folder."""

    wanted: HubName
    folder: Path
    files: tuple[FileRow, ...]
    """Empty where it cannot be known without the hub."""
    record: Record | None = None
    listing: Listing | None = field(default=None, repr=False)
    """Where the hub was asked."""
    problem: str | None = None
    """Why the hub could not be asked, or did not give the files."""

    @property
    def complete(self) -> bool:
        """Whether the model can be loaded from here."""
        return bool(self.files) and all(row.usable for row in self.files)

    @property
    def verified(self) -> bool:
        """Whether all of it had the hub's hashes when it was last hashed, and was not touched since.

        Only size and time are looked at where they are as recorded (see `is_unchanged`).
        """
        return bool(self.files) and all(row.state == "present" for row in self.files)

    @property
    def settled(self) -> bool:
        """Whether there is nothing to ask the hub: all is here, and not of a revision that may have moved."""
        revision = self.wanted.revision
        pinned = self.record is not None and self.record.is_commit(revision)
        return self.verified and (revision is None or pinned)

    @property
    def entry(self) -> Path:
        """The file or folder to load."""
        return entry_of(self.folder, [row.name for row in self.files], self.wanted.file)

    @property
    def commit(self) -> str | None:
        """The commit of the files, where it is known."""
        source = self.listing or self.record
        return source.commit if source else None

    @property
    def licence(self) -> str | None:
        """As the repository's card names it, where it is known."""
        source = self.listing or self.record or known_source(self.wanted.repo)
        return source.licence if source else None

    @property
    def lacking(self) -> tuple[FileRow, ...]:
        """What has to be downloaded."""
        return tuple(row for row in self.files if not row.usable)

    def url(self, name: str | None = None) -> str:
        """Where a browser finds a file, or the list of all files."""
        revision = self.commit or self.wanted.revision or "main"
        place = f"tree/{revision}" if name is None else f"resolve/{revision}/{name}"
        return f"{hub_address()}/{self.wanted.repo}/{place}"

    @property
    def advice(self) -> str:
        """Which files to put where, in one line."""
        names = ", ".join(row.name for row in self.lacking) or "all files of the model"
        return f"put {names} from {self.url()} into {self.folder}, each under the name it has there"


def hub_address() -> str:
    """The hub's address: the usual one, or what the hub's own variable says."""
    return (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")


def repo_folder(root: Path, repo: str) -> Path:
    """A repository's own folder; the hub allows no "--" in names, so no two share one."""
    return root / repo.replace("/", "--")


def default_root() -> Path:
    """Where models are fetched to if no folder is named."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "refdiff" / "checkpoints"


def silent(line: str) -> None:
    """For a caller who does not want to know."""


def look(folder: Path, wanted: HubName, tell: Tell = silent) -> RepoState:
    """What of a model is in a folder, as far as can be told without the hub.

    Recorded files are compared with the record (see `is_unchanged`), others by name only. A recorded file
    that was touched and is still the same has its new time recorded, so that it is hashed once; where the
    folder cannot be written to, each time.

    Args:
        folder: the repository's, which may be missing.
        wanted: the model.
        tell: told one line before a file is hashed.
    """
    record = read_record(folder)
    if record is not None and record.repo != wanted.repo:
        record = None
    names = needed_files(folder, wanted, record.files if record else ())
    rows = tuple(_row(folder, name, wanted, record, tell) for name in names)
    return RepoState(wanted=wanted, folder=folder, files=rows, record=_retimed(folder, rows, record))


def _row(folder: Path, name: str, wanted: HubName, record: Record | None, tell: Tell) -> FileRow:
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
    if not is_unchanged(path, recorded, tell):
        return FileRow(name=name, state="differs", **_facts(recorded))
    return FileRow(name=name, state="present", mtime_ns=mtime_ns, **_facts(recorded))


def _facts(recorded: RecordedFile | None) -> dict[str, Any]:
    return {"size_bytes": recorded.size_bytes, "sha256": recorded.sha256} if recorded else {}


def _retimed(folder: Path, rows: tuple[FileRow, ...], record: Record | None) -> Record | None:
    """The record, with the times that the verified files have now."""
    if record is None:
        return None
    times = {row.name: row.mtime_ns for row in rows if row.mtime_ns is not None}
    files = {
        name: replace(file, mtime_ns=times.get(name, file.mtime_ns)) for name, file in record.files.items()
    }
    if files == record.files:
        return record
    retimed = replace(record, files=files)
    with suppress(OSError):  # a folder that may only be read
        write_record(folder, retimed)
    return retimed


def needed_files(folder: Path, wanted: HubName, recorded: Collection[str]) -> tuple[str, ...]:
    """The files that the loaders need of a model.

    Args:
        folder: the repository's, which may be missing.
        wanted: the model.
        recorded: names of the files that were fetched into the folder, and may have been lost since.

    Returns:
        Names relative to the folder; none where the folder does not tell.
    """
    known = known_source(wanted.repo)
    if wanted.file is not None:
        names: tuple[str, ...] = (wanted.file,)
    elif known is not None:
        names = known.files
    else:
        try:
            names = expected_files(_names_in(folder) | set(recorded), wanted.repo)
        except InputError:
            return ()
    shards = (shard for name in names if is_index(name) for shard in shards_of(folder, name) or ())
    return tuple(dict.fromkeys((*names, *shards)))


def shards_of(folder: Path, index: str) -> tuple[str, ...] | None:
    """The shards that an index names, relative to the folder; None if it cannot be read or names none."""
    path = folder / index
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not names or not all(isinstance(name, str) and _is_plain(name) for name in names):
        return None
    return tuple(sorted((path.parent / name).relative_to(folder).as_posix() for name in names))


def _is_plain(name: str) -> bool:
    """Whether it names a file beside the index, as the loaders demand: another could be anywhere."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _names_in(folder: Path) -> set[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in names if name != RECORD and not is_hidden(name)}
