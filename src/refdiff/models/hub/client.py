"""What can go wrong on the way to the hub, said in one line and with this package's exit codes.

In: errors of the hub's library, of its HTTP client, and of the disk. Out: `refdiff.errors`.

The one place that talks to the hub: what a repository holds, and one file of it.

In: names. Out: `Listing`, and files on the disk whose size and hash are the hub's. A download that was cut
off is continued by the next one. The hub's library goes by HF_ENDPOINT, HF_TOKEN and the like; what it would
tell the hub about this machine on the side is switched off.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined,unused-ignore]

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.manifest import refdiff_version
from refdiff.errors import InputError, MissingDependencyError, RefdiffError
from refdiff.models.hub.folder import HubFile, Listing, Tell, UnreachableError, hub_address
from refdiff.models.hub.names import check_inside, is_hidden

HTTP_ERROR = cast("type[Exception]", HfHubHTTPError.__bases__[0])
"""The base of all errors of the library's HTTP client, which differs from release to release."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the errors of the library, its HTTP client and the disk into this package's."""
    try:
        yield
    except RefdiffError:
        raise
    except (HFValidationError, HfHubHTTPError, EntryNotFoundError) as error:
        raise _refusal(what, error) from error
    except (HTTP_ERROR, ConnectionError) as error:
        raise UnreachableError(
            f"cannot reach the hub at {hub_address()} for {what} ({_line(error)}); run it again with a "
            "network, and what was downloaded so far is kept"
        ) from error
    except OSError as error:
        raise _disk_refusal(what, error) from error
    except (ValueError, KeyError, TypeError) as error:  # an answer in another format than the hub's
        raise UnreachableError(
            f"what answers at {hub_address()} for {what} is no hub ({_line(error)}); look at HF_ENDPOINT, "
            "the proxy, or the network's login page"
        ) from error


def _refusal(what: str, error: Exception) -> RefdiffError:
    place = f"{hub_address()}/{'/'.join(what.split('/')[:2])}"
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, GatedRepoError):
        return MissingDependencyError(
            f"{what} is gated: accept its conditions at {place}, then log in with: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{what} has no such revision at the hub; look at {place}")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(f"the hub knows no model {what}, or it is private; look at {place}, or log in")
    if isinstance(error, (EntryNotFoundError, HFValidationError)) or status == 404:
        return InputError(f"the hub does not have {what} ({_line(error)}); look at {place}")
    if status in (401, 403):
        return MissingDependencyError(
            f"the hub does not give {what} to this user (status {status}); look at {place}, then log in "
            "with: hf auth login"
        )
    return UnreachableError(f"the hub failed at {what} ({_line(error)}); try again later")


def _disk_refusal(what: str, error: OSError) -> RefdiffError:
    if error.errno is None:  # the library's own, of a stream that ended early
        return UnreachableError(f"{what} came incomplete ({_line(error)}); run it again, and it continues")
    return InputError(
        f"cannot write {error.filename or what}: {error.strerror}; free space or choose another folder"
    )


def _line(error: BaseException) -> str:
    """An error's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_TIMEOUT_S = 15
_STEPS = 20
"""Progress lines of a large file."""


def list_repo(repo: str, revision: str | None = None) -> Listing:
    """Ask the hub for a repository's commit, licence and files.

    Args:
        repo: owner/name.
        revision: a branch, tag or commit; None for the newest.

    Raises:
        InputError: no such repository or revision, or its file names lead outside it.
        MissingDependencyError: the hub cannot be reached, or wants a login.
    """
    with explained(repo), _discreet():
        api = HfApi(endpoint=hub_address(), library_name="refdiff", library_version=refdiff_version())
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    if not info.sha:
        raise UnreachableError(f"the hub at {hub_address()} names no commit of {repo}; is it a hub at all?")
    names = [sibling.rfilename for sibling in info.siblings or ()]
    for name in names:
        check_inside(name, repo)
    return Listing(
        repo=repo,
        revision=revision,
        commit=info.sha,
        licence=_licence(info),
        files={
            sibling.rfilename: HubFile(
                size_bytes=sibling.size or 0,
                sha256=_hash(sibling.lfs.sha256 if sibling.lfs else None, 64),
                blob=_hash(sibling.blob_id, 40),
            )
            for sibling in info.siblings or ()
            if not is_hidden(sibling.rfilename)
        },
    )


def is_hub_file(path: Path, file: HubFile) -> bool:
    """Whether a file on the disk has the hub's size and hash."""
    if path.stat().st_size != file.size_bytes:
        return False
    return hash_file(path) == file.sha256 if file.sha256 is not None else _git_hash(path) == file.blob


def draft_of(file: HubFile, name: str, unfinished: Path) -> Path:
    """Where a file is while it is not whole; by its content, so that revisions do not mix.

    Raises:
        InputError: the hub states no hash.
    """
    identity = file.sha256 or file.blob
    if identity is None:
        raise InputError(f"the hub states no hash of {name}, so it cannot be verified; do not use it")
    return unfinished / f"{identity}.partial"


def download(listing: Listing, name: str, unfinished: Path, tell: Tell) -> Path:
    """Download one file, or the rest of it, and verify it.

    Args:
        listing: of its repository.
        name: of the file there.
        unfinished: folder for files that are not whole yet.
        tell: told how far it is.

    Returns:
        The whole file, still in `unfinished`.

    Raises:
        InputError: it is not what the hub announced (and is thrown away), there is no such file, or the disk
            is full or read-only.
        MissingDependencyError: the hub cannot be reached, or wants a login.
    """
    file = listing.files[name]
    draft = draft_of(file, name, unfinished)
    with explained(f"{listing.repo}/{name}"), _discreet():
        draft.touch()
        if draft.stat().st_size > file.size_bytes:
            draft.unlink()
            draft.touch()
        _continue(listing, name, draft, _Meter(f"{listing.repo}/{name}", file.size_bytes, tell))
    tell(f"verifying {listing.repo}/{name}")
    if not is_hub_file(draft, file):
        draft.unlink()
        raise InputError(
            f"{listing.repo}/{name}: what was downloaded has not the hash {file.sha256 or file.blob} the hub "
            "states, and was thrown away; fetch it again, and distrust the proxy or mirror if it stays so"
        )
    return draft


class _Meter:
    """Stands for a progress bar in the library's calls, and tells one line per step instead."""

    def __init__(self, name: str, size_bytes: int, tell: Tell) -> None:
        self._name, self._size, self._tell = name, max(size_bytes, 1), tell
        self._done = self._told = 0

    def __call__(self, *, initial: int = 0, **_: Any) -> _Meter:
        self._done, self._told = initial, -1
        self.update(0)
        return self

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self._done += count
        step = _STEPS * self._done // self._size
        if step != self._told:
            self._told = step
            self._tell(f"downloading {self._name}: {100 * step // _STEPS} % of {self._size / 1e6:.1f} MB")


def _continue(listing: Listing, name: str, draft: Path, meter: _Meter) -> None:
    """Fill a file up; tried anew for as long as each try adds something."""
    size = listing.files[name].size_bytes
    url = hf_hub_url(listing.repo, name, revision=listing.commit, endpoint=hub_address())
    headers = build_hf_headers(library_name="refdiff", library_version=refdiff_version())
    headers["accept-encoding"] = "identity"  # a place in a compressed stream is no place in the file
    while True:
        before = draft.stat().st_size
        try:
            with draft.open("r+b") as stream:
                stream.seek(before)
                http_get(
                    url,
                    stream,
                    resume_size=before,
                    headers=headers,
                    expected_size=size,
                    tqdm_class=cast("Any", meter),
                )
        except HfHubHTTPError:
            raise
        except HTTP_ERROR:
            if draft.stat().st_size <= before:
                raise
        else:
            return


@contextmanager
def _discreet() -> Iterator[None]:
    """Keeps the library from asking the hub which programs to report, and from reporting them."""
    before = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


def _hash(text: str | None, digits: int) -> str | None:
    """A hash, if it is one: it becomes part of a path."""
    return text if text is not None and re.fullmatch(rf"[0-9a-f]{{{digits}}}", text) else None


def _licence(info: ModelInfo) -> str | None:
    """From the card, or from the tag that the hub makes of it."""
    card = info.card_data
    named = card.get("license_name") or card.get("license") if card is not None else None
    tags = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return str(named) if named else next(tags, None)


def _git_hash(path: Path) -> str:
    """As git names a file's content: sha1 over its kind, its size and its bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()
