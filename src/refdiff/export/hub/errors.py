"""What can go wrong on the way to the hub, said in one line and with this package's exit codes.

In: errors of the hub's library, of its HTTP client, and of the disk. Out: `refdiff.errors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from refdiff.errors import InputError, MissingDependencyError, RefdiffError
from refdiff.export.hub.folder import UnreachableError, hub_address

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
