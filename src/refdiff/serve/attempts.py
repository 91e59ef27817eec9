"""The attempts of a client's request: what a failure means, and how long to wait before the next attempt."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from refdiff.errors import RefdiffError

_OF_SERVER, _OF_GATEWAY = frozenset({429, 503}), frozenset({429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed, in answers of refdiff and in those of gateways."""
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0
"""Between two attempts, unless the server names a time."""
_LONGEST_ASKED_S = 60.0
"""A server that names a longer time than this, in s, is not waited for."""


class ServerError(RefdiffError):
    """A server refused a request, failed or could not be reached.

    Args:
        message: one line.
        status: HTTP's; None: it could not be reached.
        kind: the server's word for it, such as "queue_full".
        retry_after_s: time in s after which the same request may succeed; None: it would fail again.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        kind: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after_s = status, kind, retry_after_s


class Attempts:
    """The attempts of one request.

    Args:
        most: of them.
        timeout_s: of one, in s.
        deadline_s: of all, in s; None: unlimited.
    """

    def __init__(self, most: int, timeout_s: float, deadline_s: float | None) -> None:
        self._left, self._timeout_s, self._wait_s = most, timeout_s, _SHORTEST_WAIT_S
        self._ends = None if deadline_s is None else time.monotonic() + deadline_s

    @property
    def timeout_s(self) -> float:
        """Time in s that the next attempt may wait for the server."""
        if self._ends is None:
            return self._timeout_s
        return min(self._timeout_s, max(1e-3, self._ends - time.monotonic()))

    def pause_s(self, error: ServerError) -> float:
        """Return the time in s before the next attempt.

        Args:
            error: of the last one.

        Raises:
            ServerError: that error, if there is no other attempt.
        """
        self._left -= 1
        asked = error.retry_after_s
        if asked is None or asked > _LONGEST_ASKED_S or self._left < 1:
            raise error
        pause = max(self._wait_s, asked) * random.uniform(1.0, 1.25)  # noqa: S311 - spreads the clients
        if self._ends is not None and time.monotonic() + pause >= self._ends:
            raise error
        self._wait_s = min(_LONGEST_WAIT_S, 2 * self._wait_s)
        return pause


@contextmanager
def lost_is_error(host: str = "the server") -> Iterator[None]:
    """Turn a connection that fails or ends too early into an error.

    Raises:
        ServerError: the block raised an error of the connection.
    """
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        text = str(error) or type(error).__name__
        raise ServerError(f"{host} cannot be reached: {text}", retry_after_s=0) from error


def parsed(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a server has answered with.

    Raises:
        ServerError: it is none.
    """
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ServerError("the server's answer is not JSON; is it refdiff serve?") from error
    if not isinstance(document, dict):
        raise ServerError("the server's answer is no JSON object; is it refdiff serve?")
    return document


def refusal(response: http.client.HTTPResponse, body: bytes) -> ServerError:
    """Return the error of an answer other than 200."""
    named = response.headers.get("Retry-After", "")
    after = float(named) if named.isascii() and named.isdigit() else 0.0
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("error"), dict):
        return error_of(response.status, document, after)
    return ServerError(
        f"got status {response.status}, and no answer of refdiff serve",
        status=response.status,
        retry_after_s=after if response.status in _OF_GATEWAY else None,
    )


def error_of(status: int | None, document: Mapping[str, Any], after: float) -> ServerError:
    """Return the error that a document of refdiff describes; an event has no status."""
    error = document.get("error", {})
    again = status in _OF_SERVER or (status is None and error.get("type") == "not_ready")
    return ServerError(
        str(error.get("message", "the server failed")),
        status=status,
        kind=error.get("type"),
        retry_after_s=after if again else None,
    )
