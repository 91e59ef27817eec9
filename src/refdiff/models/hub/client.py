"""The hub: what a repository holds, and what its errors mean.

In: names. Out: `Listing`, or one line. HF_ENDPOINT, HF_TOKEN and the
other variables of the hub's library apply; its telemetry is disabled.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import HfApi, ModelInfo, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.manifest import refdiff_version
from refdiff.errors import InputError, MissingDependencyError, RefdiffError
from refdiff.models.configs import first_line
from refdiff.models.hub.folder import HubFile, Listing, UnreachableError, hub_address
from refdiff.models.hub.names import check_inside, is_hidden

HTTP_ERROR = cast("type[Exception]", HfHubHTTPError.__bases__[0])
"""Base of all errors of the library's HTTP client, which differs from release to release."""

_TIMEOUT_S = 15
_LISTING_LIMIT_S = 60.0
"""For a whole listing, also if its bytes come one by one."""

Result = TypeVar("Result")


def list_repo(repo: str, revision: str | None = None) -> Listing:
    """Ask the hub for a repository's commit, licence and files.

    Args:
        repo: owner/name.
        revision: a branch, tag or commit; None for the newest.

    Raises:
        InputError: no such repository or revision, or its file names lead outside it.
        MissingDependencyError: the hub cannot be reached, or requires a login.
    """
    with translate_errors(repo), without_telemetry():
        api = HfApi(endpoint=hub_address(), library_name="refdiff", library_version=refdiff_version())
        info = call_within(
            _LISTING_LIMIT_S,
            lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S),
        )
    if not info.sha or not re.fullmatch(r"[0-9a-f]{7,64}", info.sha):
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


def call_within(limit_s: float, call: Callable[[], Result]) -> Result:
    """Return what a call to the network returns, if it does within a time.

    The time-outs of the HTTP client hold for one read each, so that a server can send a byte now and then.

    Raises:
        UnreachableError: it takes longer; the call is abandoned, in a thread that does not keep the process.
        Exception: what the call raises.
    """
    outcome: list[Callable[[], Result]] = []

    def work() -> None:
        try:
            result = call()
        except BaseException as error:
            outcome.append(partial(_raise, error))
        else:
            outcome.append(lambda: result)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(limit_s)
    if not outcome:
        raise UnreachableError(
            f"the hub at {hub_address()} takes more than {limit_s:.0f} s to answer; run it again later"
        )
    return outcome[0]()


def _raise(error: BaseException) -> Any:
    raise error


def matches_hub(path: Path, file: HubFile) -> bool:
    """Return whether a file on disk has the hub's size and hash."""
    if path.stat().st_size != file.size_bytes:
        return False
    return hash_file(path) == file.sha256 if file.sha256 is not None else _git_hash(path) == file.blob


@contextmanager
def without_telemetry() -> Iterator[None]:
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
def translate_errors(what: str) -> Iterator[None]:
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
    except ImportError as error:  # the HTTP client, about SOCKS
        raise MissingDependencyError(
            f"cannot reach the hub for {what} through this proxy ({first_line(error)}); unset ALL_PROXY, or "
            "set HTTPS_PROXY to an HTTP proxy"
        ) from error
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
