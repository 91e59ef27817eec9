"""From the name of a model to files on this machine: looked up, and downloaded where that is allowed.

In: a path, or a name on the hub. Out: the path to load. Places are tried in this order, the network last: the
path itself, the folder `refdiff fetch` fills, the cache of the hub's own library, the hub.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from huggingface_hub import constants

from refdiff.contracts.atomic_io import hash_file
from refdiff.errors import InputError, MissingDependencyError
from refdiff.models.hub.client import download, draft_of, is_hub_file, list_repo
from refdiff.models.hub.folder import (
    UNFINISHED,
    FileRow,
    Listing,
    RepoState,
    Tell,
    default_root,
    hub_address,
    look,
    repo_folder,
    silent,
)
from refdiff.models.hub.names import HubName, choose_files, parse_hub_name, with_shards
from refdiff.models.hub.record import (
    RECORD,
    Record,
    RecordedFile,
    is_unchanged,
    write_record,
)
from refdiff.models.presets import known_source


def resolve(
    name: str, *, checkpoints: Path | None = None, offline: bool = False, progress: Tell | None = None
) -> Path:
    """Find a model, and download it if it is nowhere on this machine.

    Args:
        name: a file or folder; or owner/name, owner/name@revision, owner/name/file on the hub.
        checkpoints: the folder `refdiff fetch` filled; None for its default place. Downloads go there too.
        offline: never touch the network.
        progress: told one line at each step.

    Returns:
        The file or folder to load.

    Raises:
        InputError: no such file and no such name, or a checkpoint folder that does not exist.
        MissingDependencyError: it is not here, and may not or cannot be downloaded.
    """
    tell = progress or silent
    path = Path(name).expanduser()
    if path.exists():
        return path
    wanted = parse_hub_name(name)
    if checkpoints is not None and not checkpoints.is_dir():
        raise InputError(f"{checkpoints} is not a folder; fill one with: refdiff fetch MODEL --to DIR")
    root = checkpoints or default_root()
    here = look(repo_folder(root, wanted.repo), wanted, tell)
    found = next((state for state in (here, _cached(wanted)) if state.complete), None)
    if found is not None:
        return found.entry
    if offline:
        raise MissingDependencyError(
            f"{wanted.text} is not on this machine, and --offline forbids a download: {here.advice}"
        )
    try:
        return fetch_repo(plan_repo(wanted, root, tell), tell).entry
    except MissingDependencyError as error:
        raise type(error)(f"{error}; or {here.advice}") from error


def plan_repo(wanted: HubName, root: Path, tell: Tell) -> RepoState:
    """Compare what is in a fetch folder with the hub, which is asked only if the folder does not say enough.

    Args:
        wanted: the model.
        root: the fetch folder.
        tell: told one line at each step.

    Raises:
        InputError: the hub has no such model, or not in a layout that can be loaded.
        MissingDependencyError: the hub cannot be reached, or wants a login.
    """
    folder = repo_folder(root, wanted.repo)
    here = look(folder, wanted, tell)
    if here.settled:
        return here
    tell(f"asking the hub for {wanted.text}")
    listing = list_repo(wanted.repo, wanted.revision)
    names = _needed(wanted, listing)
    return replace(
        here,
        listing=listing,
        files=tuple(_compared(here, name, listing, tell) for name in names),
    )


def fetch_repo(plan: RepoState, tell: Tell) -> RepoState:
    """Download what a plan lacks, verify it, and record it.

    Args:
        plan: of `plan_repo`.
        tell: told one line at each step.

    Returns:
        The folder afterwards, complete and verified.

    Raises:
        InputError: a file is not what the hub announced, or the disk does not take it.
        MissingDependencyError: the connection broke for good; what was downloaded stays and is continued.
    """
    listing = plan.listing
    if listing is None:
        return plan
    try:
        with working_folder(plan.folder) as unfinished:
            check_space(plan, listing, unfinished)
            if plan.lacking:  # from here on, the record of what is replaced would be wrong
                (plan.folder / RECORD).unlink(missing_ok=True)
            for row in plan.lacking:
                draft = download(listing, row.name, unfinished, tell)
                _place(draft, plan.folder / row.name, _recorded(plan, row.name), tell)
            write_record(plan.folder, _new_record(plan, listing))
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or plan.folder}: {error.strerror or error}; free space or choose "
            "another folder"
        ) from error
    return replace(look(plan.folder, plan.wanted), listing=listing)


def _cached(wanted: HubName) -> RepoState:
    """The model in the cache of the hub's library, which documents its layout: refs, a folder per commit."""
    cache = Path(constants.HF_HUB_CACHE) / f"models--{wanted.repo.replace('/', '--')}"
    revision = wanted.revision or constants.DEFAULT_REVISION
    reference = cache / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    return look(cache / "snapshots" / commit, wanted)


def _needed(wanted: HubName, listing: Listing) -> tuple[str, ...]:
    """The files to fetch, all of which the hub has."""
    known = known_source(wanted.repo)
    if wanted.file is not None:
        names = with_shards(wanted.file, listing.files)
    else:
        names = known.files if known else choose_files(listing.files.keys(), wanted.repo)
    missing = [name for name in names if name not in listing.files]
    if missing:
        raise InputError(
            f"{wanted.repo} has no {', '.join(missing)} at commit {listing.commit[:12]}; look at "
            f"{hub_address()}/{wanted.repo}/tree/{listing.commit}"
        )
    return names


def _compared(here: RepoState, name: str, listing: Listing, tell: Tell) -> FileRow:
    file, path, recorded = listing.files[name], here.folder / name, _recorded(here, name)
    if not path.is_file():
        return FileRow(name=name, state="missing", size_bytes=file.size_bytes, sha256=file.sha256)
    mtime_ns = path.stat().st_mtime_ns
    if recorded is not None and recorded.sha256 == file.sha256:
        same = is_unchanged(path, recorded, tell)
    else:
        tell(f"verifying {listing.repo}/{name}")
        same = is_hub_file(path, file)
    return FileRow(
        name=name,
        state="present" if same else "differs",
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        mtime_ns=mtime_ns if same else None,
    )


def _place(draft: Path, path: Path, recorded: RecordedFile | None, tell: Tell) -> None:
    """Rename a download to its place; what was there is kept aside, unless an earlier fetch put it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (recorded is not None and hash_file(path) == recorded.sha256):
        numbers = itertools.count(1)
        aside = next(a for n in numbers if not (a := path.with_name(f"{path.name}.old-{n}")).exists())
        path.rename(aside)
        tell(f"{path} was not what the hub has; it is now {aside.name}")
    draft.replace(path)


def _new_record(plan: RepoState, listing: Listing) -> Record:
    earlier = plan.record.files if plan.record and plan.record.commit == listing.commit else {}
    fetched = {
        row.name: RecordedFile(
            size_bytes=listing.files[row.name].size_bytes,
            sha256=row.sha256 or hash_file(plan.folder / row.name),
            mtime_ns=row.mtime_ns or (plan.folder / row.name).stat().st_mtime_ns,
        )
        for row in plan.files
    }
    return Record(
        repo=listing.repo,
        revision=listing.revision,
        commit=listing.commit,
        licence=listing.licence,
        files={**earlier, **fetched},
    )


def _recorded(plan: RepoState, name: str) -> RecordedFile | None:
    return plan.record.files.get(name) if plan.record else None


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
