"""One file from the hub: continued where it stopped, never longer than announced, and verified.

In: a listing and a name. Out: a file whose size and hash are the hub's. Files are read with the HTTP session
of the hub's library and not with `hf_hub_download`, which starts an interrupted download again from the first
byte (huggingface_hub#4306): a weight file of several gigabytes is continued here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined,unused-ignore]

from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.progress import Progress, Step
from refdiff.errors import InputError
from refdiff.models.hub.client import (
    HTTP_ERROR,
    call_within,
    matches_hub,
    translate_errors,
    without_telemetry,
)
from refdiff.models.hub.folder import HubFile, Listing, UnreachableError, hub_address

_TIMEOUT_S = 15
_STEP_LIMIT_S = 30.0
"""For the headers of an answer, and for one chunk of it, also if their bytes come one by one."""

_WINDOW_S = 60.0
_LEAST_RATE = 1000.0
"""Bytes per second that a download must receive in each window: 5 GB take two months at this rate."""

_TRIES = 5
"""Attempts in a row that may fail without receiving a byte."""

_RETRY_PAUSE_S = 1.0
_RETRIED_STATUS = (408, 429)
_PROGRESS_STEPS = 20
"""Progress lines of a large file."""


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
    with translate_errors(title), without_telemetry():
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
        with _answer(url, headers) as response, partial.open("r+b") as stream:
            hf_raise_for_status(response)
            stream.seek(start if response.status_code == 206 else 0)  # 200: the server ignores ranges
            stream.truncate()
            for chunk in read_chunks(response, title=f"{listing.repo}/{name}"):
                if stream.tell() + len(chunk) > listing.files[name].size_bytes:
                    raise _too_long(partial, name, listing)
                stream.write(chunk)
                report(stream.tell())
    except HfHubHTTPError as error:
        if error.response.status_code not in _RETRIED_STATUS:
            raise
        return error
    except HTTP_ERROR as error:
        return error
    return None


@contextmanager
def _answer(url: str, headers: dict[str, str]) -> Iterator[Any]:
    """Yield the answer to a request, its content still to be read."""
    session: Any = get_session()
    request = session.build_request("GET", url, headers=headers, timeout=_TIMEOUT_S)
    response = call_within(_STEP_LIMIT_S, lambda: session.send(request, stream=True, follow_redirects=True))
    try:
        yield response
    finally:
        response.close()


def read_chunks(response: Any, *, title: str, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
    """Yield the content as it is sent, undecoded.

    Args:
        response: of the HTTP client.
        title: of the file, for messages.
        clock: in seconds.

    Raises:
        UnreachableError: the server sends next to nothing.
    """
    raw = response.iter_raw()
    begin, received = clock(), 0
    while (chunk := call_within(_STEP_LIMIT_S, lambda: next(raw, None))) is not None:
        yield chunk
        received += len(chunk)
        elapsed = clock() - begin
        if elapsed > _WINDOW_S:
            if received < _LEAST_RATE * elapsed:
                raise UnreachableError(
                    f"{title}: the hub sent {received} bytes in {elapsed:.0f} s, expected at least "
                    f"{_LEAST_RATE:.0f} bytes per second; run it again later, what was downloaded is kept"
                )
            begin, received = clock(), 0


def _too_long(partial: Path, name: str, listing: Listing) -> InputError:
    partial.unlink()
    return InputError(
        f"{listing.repo}/{name}: the hub sends more than the {listing.files[name].size_bytes} bytes that it "
        "announced, and the download was deleted; fetch it again, and distrust the proxy or mirror if that "
        "does not help"
    )


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
