"""The images of Label Studio's tasks: data URIs, and files of the one Label Studio that the operator names.

A client cannot make the server fetch from anywhere else: the origin is fixed at the start, only Label
Studio's paths of images are asked for, redirects are not followed, and time and size are limited.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from refdiff.errors import InputError
from refdiff.serve.request import decode_base64

_PATHS = ("/data/", "/storage-data/", "/tasks/", "/projects/")
"""Where Label Studio has uploads, local files and files of its storages."""

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class LabelStudioOptions:
    """The Label Studio whose images are fetched."""

    url: str | None = None
    """Such as "http://127.0.0.1:8080"; None: nothing is fetched."""
    token: str | None = field(default=None, repr=False)
    """An access token of one of its users: a legacy one, or a personal one, which is exchanged."""
    most_bytes: int = 32 << 20
    """Most bytes of an image."""
    seconds: float = 10.0
    """Time in s for a connection, for each part of an answer, and three times that for all of it."""


class LabelStudioImages:
    """Gets the image of a task; its methods block.

    Args:
        options: where images may come from.

    Raises:
        InputError: the address is not one of a server.
    """

    def __init__(self, options: LabelStudioOptions) -> None:
        self._options = options
        self._origin = None if options.url is None else _split_origin(options.url)
        self._access: str | None = None

    def read(self, address: object) -> bytes:
        """Return the bytes of an image file.

        Args:
            address: a data URI, or an address or a path of Label Studio.

        Raises:
            InputError: it is none of these, or the file cannot be had.
        """
        if not isinstance(address, str) or not address:
            raise InputError("the task has no image, expected its address or a data URI as a text")
        if address.startswith("data:"):
            return _read_data_uri(address)
        if self._origin is None:
            raise InputError(
                "the image is at an address, and this server fetches none; start it with "
                "--label-studio-url, or import images as data URIs"
            )
        path = _allowed_path(self._origin, address)
        status, data = self._fetch("GET", path)
        if status == 401 and self._exchanged:
            self._access = None  # it lives for some minutes
            status, data = self._fetch("GET", path)
        if status != 200:
            raise InputError(f"Label Studio answers {status} for the image; {_advice(status)}")
        return data

    @property
    def _exchanged(self) -> bool:
        """Whether the token is a personal one: a JSON web token, which only buys short-lived ones."""
        return self._options.token is not None and self._options.token.count(".") == 2

    def _authorization(self) -> dict[str, str]:
        if self._options.token is None:
            return {}
        if not self._exchanged:
            return {"Authorization": f"Token {self._options.token}"}
        if self._access is None:
            self._access = self._exchange()
        return {"Authorization": f"Bearer {self._access}"}

    def _exchange(self) -> str:
        assert self._origin is not None  # noqa: S101 - for mypy
        body = json.dumps({"refresh": self._options.token}).encode()
        path = f"{self._origin.path}/api/token/refresh"
        status, data = self._send("POST", path, {"Content-Type": "application/json"}, body)
        try:
            return str(json.loads(data)["access"])
        except (ValueError, LookupError, TypeError):
            raise InputError(
                f"Label Studio does not accept the token ({status}); make a new one and restart with it"
            ) from None

    def _fetch(self, method: str, path: str) -> tuple[int, bytes]:
        return self._send(method, path, self._authorization(), None)

    def _send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> tuple[int, bytes]:
        """Return status and body of an answer."""
        ends = time.monotonic() + 3 * self._options.seconds
        with self._connection() as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            parts, total = [], 0
            while part := answer.read1(_CHUNK_BYTES):
                parts.append(part)
                total += len(part)
                if total > self._options.most_bytes:
                    raise InputError(f"the image has more than {self._options.most_bytes} bytes")
                if time.monotonic() > ends:
                    raise TimeoutError
            if answer.length:
                raise InputError("the image did not arrive as a whole; try again")
        return answer.status, b"".join(parts)

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        """Connect to Label Studio; proxies of the environment are not used."""
        origin, seconds = self._origin, self._options.seconds
        assert origin is not None  # noqa: S101 - for mypy
        assert origin.hostname is not None  # noqa: S101 - for mypy
        if origin.scheme == "https":
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                origin.hostname, origin.port, timeout=seconds, context=context
            )
        else:
            connection = http.client.HTTPConnection(origin.hostname, origin.port, timeout=seconds)
        try:
            yield connection
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"the image cannot be fetched from Label Studio ({type(error).__name__}); "
                "check --label-studio-url"
            ) from error
        finally:
            connection.close()


def _split_origin(url: str) -> SplitResult:
    """Return the parts of an address of a server, with its path without a slash at the end."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        named = False
    if not named or parts.query or parts.fragment or parts.username is not None:
        raise InputError(
            f"got --label-studio-url {url!r}, expected one such as http://127.0.0.1:8080; correct it"
        )
    return parts._replace(path=parts.path.rstrip("/"))


def _allowed_path(origin: SplitResult, address: str) -> str:
    """Return the path and query of an image at the operator's Label Studio.

    Raises:
        InputError: it is elsewhere, or no path of an image.
    """
    try:
        parts = urlsplit(address)
        same = not parts.netloc and not parts.scheme
        if not same:
            same = _server_of(parts) == _server_of(origin) and parts.username is None
    except ValueError:
        same = False
    if not same:
        raise InputError(
            "the image is not at the Label Studio that this server was started with; import it there, or "
            "as a data URI"
        )
    path = parts.path if parts.path.startswith(f"{origin.path}/") else f"{origin.path}{parts.path}"
    below = unquote(path[len(origin.path) :])
    if not below.startswith(_PATHS) or ".." in below.split("/") or not _is_plain(f"{path}?{parts.query}"):
        raise InputError(f"the image is at no path of images of Label Studio, expected {', '.join(_PATHS)}")
    return f"{path}?{parts.query}" if parts.query else path


def _server_of(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _is_plain(text: str) -> bool:
    """Return whether a text can be the target of a request as it is."""
    return text.isascii() and text.isprintable() and " " not in text and "\\" not in unquote(text)


def _read_data_uri(address: str) -> bytes:
    head, comma, text = address.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InputError("got a data URI that is not base64, expected data:image/png;base64,...")
    try:
        return decode_base64(text)
    except ValueError as error:
        raise InputError("got a data URI whose base64 is damaged; import the image again") from error


def _advice(status: int) -> str:
    if status in (401, 403):
        return "start this server with --label-studio-token, and check the token"
    if 300 <= status < 400:
        return "redirects are not followed; let Label Studio serve the file itself"
    return "check the task's image in Label Studio"
