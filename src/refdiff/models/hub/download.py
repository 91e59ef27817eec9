"""Find a model by its name, and download what this machine lacks of it.

In: a path, or a name on the hub. Out: the path to load. Places are searched in this order, the network last:
the path itself, the folder that `refdiff fetch` fills, the cache of the hub's own library, the hub.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.file_lock import lock_file
from refdiff.contracts.progress import Progress, silent
from refdiff.errors import InputError, MissingDependencyError
from refdiff.models.hub.client import list_repo, matches_hub
from refdiff.models.hub.folder import (
    RECORD,
    UNFINISHED,
    FileRow,
    Listing,
    Record,
    RecordedFile,
    RepoState,
    default_root,
    hub_address,
    inspect_folder,
    is_unchanged,
    repo_folder,
    write_record,
)
from refdiff.models.hub.names import HubName, choose_files, parse_hub_name, with_shards
from refdiff.models.hub.transfer import download_file, partial_path
from refdiff.models.presets import known_source


def resolve(
    name: str,
    *,
    checkpoints: Path | None = None,
    offline: bool = False,
    non_ema: bool = False,
    progress: Progress = silent,
) -> Path:
    """Find a model, and download it if it is nowhere on this machine.

    Args:
        name: a file or folder; or owner/name, owner/name@revision, owner/name/file on the hub.
        checkpoints: the folder that `refdiff fetch` filled, None for its default; downloads go there too.
        offline: never use the network.
        non_ema: of a diffusers folder with both, fetch the UNet's weights that are not averaged.
        progress: receives a line at each step.

    Returns:
        The file or folder to load.

    Raises:
        InputError: no such file and no such name, or a checkpoint folder that does not exist.
        MissingDependencyError: it is not here, and may not or cannot be downloaded.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    wanted = replace(parse_hub_name(name), non_ema=non_ema)
    if checkpoints is not None and not checkpoints.is_dir():
        raise InputError(f"{checkpoints} is not a folder; fill one with: refdiff fetch MODEL --to DIR")
    root = checkpoints or default_root()
    here = inspect_folder(repo_folder(root, wanted.repo), wanted, progress)
    found = next((state for state in (here, _inspect_library_cache(wanted)) if state.complete), None)
    if found is not None:
        return found.entry
    if offline:
        raise MissingDependencyError(
            f"{wanted.text} is not on this machine, and --offline forbids a download: {here.advice}"
        )
    try:
        return download_repo(plan_repo(wanted, root, progress), progress).entry
    except MissingDependencyError as error:
        raise type(error)(f"{error}; or {here.advice}") from error


def plan_repo(wanted: HubName, root: Path, progress: Progress) -> RepoState:
    """Compare a model's folder with the hub, which is asked only if the folder does not settle it.

    Args:
        wanted: the model.
        root: the folder of all models.
        progress: receives a line at each step.

    Raises:
        InputError: the hub has no such model, or not in a layout that can be loaded.
        MissingDependencyError: the hub cannot be reached, or requires a login.
    """
    here = inspect_folder(repo_folder(root, wanted.repo), wanted, progress)
    if here.settled:
        return here
    progress(f"asking the hub for {wanted.text}")
    listing = list_repo(wanted.repo, wanted.revision)
    names = _choose_listed(wanted, listing)
    files = tuple(_compare(here, name, listing, progress) for name in names)
    return replace(here, listing=listing, files=files)


def download_repo(plan: RepoState, progress: Progress) -> RepoState:
    """Download what a plan lacks, verify it, and record it.

    Args:
        plan: of `plan_repo`.
        progress: receives a line at each step.

    Returns:
        The folder afterwards, complete and verified.

    Raises:
        InputError: a file is not what the hub announced, the disk does not take it, or another process is
            downloading into the folder.
        MissingDependencyError: the connection failed; the next download continues where it stopped.
    """
    listing = plan.listing
    if listing is None:
        return plan
    try:
        with _locked_folder(plan.folder) as unfinished:
            plan = _renew(plan, listing, progress)
            _check_space(plan, listing, unfinished)
            if plan.lacking:  # from here on, the record of what is replaced would be wrong
                (plan.folder / RECORD).unlink(missing_ok=True)
            for row in plan.lacking:
                partial = download_file(listing, row.name, unfinished, progress)
                _place(partial, plan.folder / row.name, plan.recorded(row.name), progress)
            write_record(plan.folder, _new_record(plan, listing))
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or plan.folder}: {error.strerror or error}; free space or choose "
            "another folder"
        ) from error
    return replace(inspect_folder(plan.folder, plan.wanted), listing=listing)


def _renew(plan: RepoState, listing: Listing, progress: Progress) -> RepoState:
    """Compare again what a plan lacks: another process may have fetched it before this one had the lock."""
    here = inspect_folder(plan.folder, plan.wanted)
    files = tuple(
        _compare(here, row.name, listing, progress) if row in plan.lacking else row for row in plan.files
    )
    return replace(here, listing=listing, files=files)


def _inspect_library_cache(wanted: HubName) -> RepoState:
    """Return the model's state in the cache of the hub's library, whose layout is documented."""
    cache = Path(constants.HF_HUB_CACHE) / f"models--{wanted.repo.replace('/', '--')}"
    revision = wanted.revision or constants.DEFAULT_REVISION
    reference = cache / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    return inspect_folder(cache / "snapshots" / commit, wanted)


def _choose_listed(wanted: HubName, listing: Listing) -> tuple[str, ...]:
    """Return the files to fetch; the hub has them all."""
    known = known_source(wanted.repo)
    if wanted.file is not None:
        names = with_shards(wanted.file, listing.files)
    else:
        names = (
            known.files_of(non_ema=wanted.non_ema)
            if known and known.files
            else choose_files(listing.files.keys(), wanted.repo, non_ema=wanted.non_ema)
        )
    missing = [name for name in names if name not in listing.files]
    if missing:
        raise InputError(
            f"{wanted.repo} has no {', '.join(missing)} at commit {listing.commit[:12]}; look at "
            f"{hub_address()}/{wanted.repo}/tree/{listing.commit}"
            + (", or pass --diffusion-weights ema" if wanted.non_ema else "")
        )
    return names


def _compare(here: RepoState, name: str, listing: Listing, progress: Progress) -> FileRow:
    """Compare a file of the folder with the hub's listing; read it only if the record does not settle it."""
    file, path, recorded = listing.files[name], here.folder / name, here.recorded(name)
    if not path.is_file():
        return FileRow(name=name, state="missing", size_bytes=file.size_bytes, sha256=file.sha256)
    mtime_ns = path.stat().st_mtime_ns
    if recorded is not None and recorded.sha256 == file.sha256:
        same = is_unchanged(path, recorded, progress)
    else:
        progress(f"verifying {listing.repo}/{name}")
        same = matches_hub(path, file)
    return FileRow(
        name=name,
        state="present" if same else "differs",
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        mtime_ns=mtime_ns if same else None,
    )


def _place(partial: Path, path: Path, recorded: RecordedFile | None, progress: Progress) -> None:
    """Rename a download to its place; the file there is kept aside unless an earlier download wrote it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (recorded is not None and hash_file(path) == recorded.sha256):
        numbers = itertools.count(1)
        aside = next(a for n in numbers if not (a := path.with_name(f"{path.name}.old-{n}")).exists())
        path.rename(aside)
        progress(f"{path} was not what the hub has; it is now {aside.name}")
    partial.replace(path)


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


@contextmanager
def _locked_folder(folder: Path) -> Iterator[Path]:
    """Yield the folder for unfinished downloads, to one process at a time.

    It is deleted if the block ends well; otherwise the next download continues what is in it.

    Raises:
        InputError: another process is downloading into the repository's folder.
        OSError: the disk refuses.
    """

    def refuse() -> None:
        raise InputError(f"another process is fetching into {folder}; wait for it to end")

    unfinished = folder / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    with lock_file(folder.with_name(f".{folder.name}.lock"), on_busy=refuse):
        unfinished.mkdir(exist_ok=True)
        yield unfinished
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_space(plan: RepoState, listing: Listing, unfinished: Path) -> None:
    """Refuse a download that the disk has no room for, considering what is there of it."""
    files = {row.name: listing.files[row.name] for row in plan.lacking}
    partials = {partial_path(file, name, unfinished) for name, file in files.items()}
    started = sum(partial.stat().st_size for partial in partials if partial.exists())
    needed = sum(file.size_bytes for file in files.values()) - started
    free = shutil.disk_usage(unfinished).free
    if needed > free:
        raise InputError(
            f"{plan.wanted.repo} needs {needed / 1e9:.2f} GB more and {plan.folder} has {free / 1e9:.2f} GB "
            "free; free space or choose another folder"
        )
