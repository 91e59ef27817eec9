"""The one place that talks to the hub: what a repository holds, and one file of it.

In: names. Out: `Listing`, and files on disk whose size and hash are the hub's. HF_ENDPOINT, HF_TOKEN and the
other variables of the hub's library apply; its telemetry is disabled. Files are read with the library's HTTP
session and not with `hf_hub_download`, which starts an interrupted download again from the first byte
(huggingface_hub#4306): a weight file of several gigabytes is continued here.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, ModelInfo, constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined,unused-ignore]

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.progress import Progress, Step
from refdiff.errors import InputError, MissingDependencyError, RefdiffError
from refdiff.models.configs import first_line
from refdiff.models.hub.folder import HubFile, Listing, UnreachableError, hub_address
from refdiff.models.hub.names import check_inside, is_hidden

HTTP_ERROR = cast("type[Exception]", HfHubHTTPError.__bases__[0])
"""Base of all errors of the library's HTTP client, which differs from release to release."""

_TIMEOUT_S = 15
_TRIES = 5
"""Attempts in a row that may fail without receiving a byte."""

_RETRY_PAUSE_S = 1.0
_RETRIED_STATUS = (408, 429)
_PROGRESS_STEPS = 20
"""Progress lines of a large file."""


def list_repo(repo: str, revision: str | None = None) -> Listing:
    """Ask the hub for a repository's commit, licence and files.

    Args:
        repo: owner/name.
        revision: a branch, tag or commit; None for the newest.

    Raises:
        InputError: no such repository or revision, or its file names lead outside it.
        MissingDependencyError: the hub cannot be reached, or requires a login.
    """
    with _translate_errors(repo), _without_telemetry():
        api = HfApi(endpoint=hub_address(), library_name="refdiff", library_version=refdiff_version())
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    if not info.sha:
        raise UnreachableError(f"the hub at {hub_address()} names no commit of {repo}; is it a hub at all?")
    siblings = info.siblings or ()
    for sibling in siblings:
        check_inside(sibling.rfilename, repo)
    return Listing(
        repo=repo,
        revision=revision,
        commit=info.sha,
        licence=_licence(info),
        files={
            sibling.rfilename: HubFile(
                size_bytes=sibling.size or 0,
                sha256=_check_hash(sibling.lfs.sha256 if sibling.lfs else None, 64),
                blob=_check_hash(sibling.blob_id, 40),
            )
            for sibling in siblings
            if not is_hidden(sibling.rfilename)
        },
    )


def matches_hub(path: Path, file: HubFile) -> bool:
    """Return whether a file on disk has the hub's size and hash."""
    if path.stat().st_size != file.size_bytes:
        return False
    return hash_file(path) == file.sha256 if file.sha256 is not None else _git_hash(path) == file.blob


def partial_path(file: HubFile, name: str, unfinished: Path) -> Path:
    """Return where a file is until it is whole; named by its hash, so that revisions do not mix.

    Raises:
        InputError: the hub states no hash.
    """
    identity = file.sha256 or file.blob
    if identity is None:
        raise InputError(f"the hub states no hash of {name}, so it cannot be verified; do not use it")
    return unfinished / f"{identity}.partial"


def download_file(listing: Listing, name: str, unfinished: Path, progress: Progress) -> Path:
    """Download one file, or the rest of it, and verify it.

    Args:
        listing: of its repository.
        name: of the file there.
        unfinished: folder for files that are not whole yet.
        progress: receives a line for every twentieth of the file.

    Returns:
        The whole file, still in `unfinished`.

    Raises:
        InputError: the content is not what the hub announced (and is deleted), there is no such file, or the
            disk is full or read-only.
        MissingDependencyError: the hub cannot be reached, or requires a login.
    """
    file, title = listing.files[name], f"{listing.repo}/{name}"
    partial = partial_path(file, name, unfinished)
    with _translate_errors(title), _without_telemetry():
        partial.touch()
        if partial.stat().st_size > file.size_bytes:
            partial.write_bytes(b"")
        _complete(listing, name, partial, _progress_by_steps(title, file.size_bytes, progress))
    progress(f"verifying {title}")
    if not matches_hub(partial, file):
        partial.unlink()
        raise InputError(
            f"{title}: the download does not have the hash {file.sha256 or file.blob} that the hub states, "
            "and was deleted; fetch it again, and distrust the proxy or mirror if that does not help"
        )
    return partial


def _complete(listing: Listing, name: str, partial: Path, report: Callable[[int], None]) -> None:
    """Append what a partial file lacks; try again as long as some attempts receive something."""
    size = listing.files[name].size_bytes
    failures, done = 0, partial.stat().st_size
    report(done)
    while done < size:
        error = _append(listing, name, partial, report)
        before, done = done, partial.stat().st_size
        failures = 0 if done > before else failures + 1
        if failures == _TRIES or (error is None and done < size):
            raise error or OSError(f"got {done} of {size} bytes")
        if error is not None:
            time.sleep(_RETRY_PAUSE_S)


def _append(listing: Listing, name: str, partial: Path, report: Callable[[int], None]) -> Exception | None:
    """Append to a partial file until the connection ends; return the error that ended it, if it may pass."""
    url = hf_hub_url(listing.repo, name, revision=listing.commit, endpoint=hub_address())
    # An offset into a compressed stream would be no offset into the file.
    headers = {"accept-encoding": "identity"}
    if start := partial.stat().st_size:
        headers["range"] = f"bytes={start}-"
    headers = build_hf_headers(library_name="refdiff", library_version=refdiff_version(), headers=headers)
    try:
        with (
            get_session().stream(
                "GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True
            ) as response,
            partial.open("r+b") as stream,
        ):
            hf_raise_for_status(response)
            stream.seek(start if response.status_code == 206 else 0)  # 200: the server ignores ranges
            stream.truncate()
            for chunk in response.iter_bytes():
                stream.write(chunk)
                report(stream.tell())
    except HfHubHTTPError as error:
        if error.response.status_code not in _RETRIED_STATUS:
            raise
        return error
    except HTTP_ERROR as error:
        return error
    return None


def _progress_by_steps(title: str, size: int, progress: Progress) -> Callable[[int], None]:
    """Return a function that takes the bytes a file has by now, and reports each new twentieth."""
    reported = -1

    def report(done: int) -> None:
        nonlocal reported
        step = _PROGRESS_STEPS * done // max(size, 1)
        if step != reported:
            reported = step
            line = f"downloading {title}: {100 * step // _PROGRESS_STEPS} % of {size / 1e6:.1f} MB"
            progress(Step(line, done=done, total=size, unit=title))

    return report


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep the library from asking the hub which programs to report, and from reporting them."""
    before = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


def _check_hash(text: str | None, digits: int) -> str | None:
    """Return a hash if it is one, else None: it becomes part of a path."""
    return text if text is not None and re.fullmatch(rf"[0-9a-f]{{{digits}}}", text) else None


def _licence(info: ModelInfo) -> str | None:
    """Return the licence that the card names, or the tag that the hub derives from it."""
    card = info.card_data
    named = card.get("license_name") or card.get("license") if card is not None else None
    tags = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return str(named) if named else next(tags, None)


def _git_hash(path: Path) -> str:
    """Return git's hash of a file's content: sha1 over its kind, its size and its bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Turn errors of the library, its HTTP client and the disk into one line and an exit code."""
    try:
        yield
    except RefdiffError:
        raise
    except (HFValidationError, HfHubHTTPError, EntryNotFoundError) as error:
        raise _refusal(what, error) from error
    except (HTTP_ERROR, ConnectionError) as error:
        raise UnreachableError(
            f"cannot reach the hub at {hub_address()} for {what} ({first_line(error)}); run it again with a "
            "network, and what was downloaded so far is kept"
        ) from error
    except OSError as error:
        raise _disk_refusal(what, error) from error
    except (ValueError, KeyError, TypeError) as error:  # an answer in another format than the hub's
        raise UnreachableError(
            f"what answers at {hub_address()} for {what} is no hub ({first_line(error)}); check "
            "HF_ENDPOINT, the proxy, or the network's login page"
        ) from error


def _refusal(what: str, error: Exception) -> RefdiffError:
    page = f"{hub_address()}/{'/'.join(what.split('/')[:2])}"
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, GatedRepoError):
        return MissingDependencyError(
            f"{what} is gated: accept its conditions at {page}, then log in with: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{what} has no such revision at the hub; look at {page}")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(f"the hub knows no model {what}, or it is private; look at {page}, or log in")
    if isinstance(error, (EntryNotFoundError, HFValidationError)) or status == 404:
        return InputError(f"the hub does not have {what} ({first_line(error)}); look at {page}")
    if status in (401, 403):
        return MissingDependencyError(
            f"the hub does not give {what} to this user (status {status}); look at {page}, then log in "
            "with: hf auth login"
        )
    return UnreachableError(f"the hub failed at {what} ({first_line(error)}); try again later")


def _disk_refusal(what: str, error: OSError) -> RefdiffError:
    if error.errno is None:  # a stream that ended early
        return UnreachableError(
            f"{what} came incomplete ({first_line(error)}); run it again to continue the download"
        )
    return InputError(
        f"cannot write {error.filename or what}: {error.strerror}; free space or choose another folder"
    )
