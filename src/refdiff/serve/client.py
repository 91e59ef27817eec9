"""The client of `refdiff serve`; it needs numpy and Pillow, and none of the models."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from refdiff.contracts.session import Bool
from refdiff.errors import InputError, RefdiffError
from refdiff.runtime.image import ImageLike, png, read_image, read_path
from refdiff.serve.request import image_id_of

_RETRIED = (429, 502, 503)
_MOST_KNOWN = 256
"""Ids of images that a client remembers."""


class ServerError(RefdiffError):
    """A server refused a request, failed or could not be reached.

    Args:
        message: one line.
        status: HTTP's; None: it could not be reached.
        kind: the server's word for it, such as "queue_full".
    """

    exit_code = 3

    def __init__(self, message: str, *, status: int | None = None, kind: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one phrase."""

    phrase: str
    mask: Bool | None = field(repr=False)
    """[y, x]; None if there is none."""
    confidence: float | None
    """Probability that the mask is right, 0..1; None: not calibrated, or no mask."""
    score: float | None
    reason: str | None
    """Why there is no mask."""
    cautions: tuple[str, ...]
    """Why the mask may be wrong."""
    image_id: str
    document: Mapping[str, Any] = field(repr=False)
    """The answer as it was sent, with the parts of the score and what else was asked for."""


class Client:
    """Asks a server for masks.

    A request is repeated after a lost connection, and where the server asks for it: the answer to a request
    is the same each time, so nothing is done twice. An image is sent once; later requests name it.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        token: of the server.
        timeout_s: of one attempt, in s.
        attempts: tries of one request.

    Raises:
        InputError: not an http or https URL.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout_s: float = 120.0, attempts: int = 5
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"got server {url!r}, expected a URL such as http://127.0.0.1:8000")
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._token, self._timeout_s, self._attempts = token, timeout_s, attempts
        self._known: OrderedDict[str, None] = OrderedDict()

    def segment(
        self,
        image: ImageLike,
        phrases: str | Iterable[str],
        *,
        min_confidence: float | None = None,
        **wanted: bool,
    ) -> list[Answer]:
        """Return the answer to each phrase, in order.

        Args:
            image: what `refdiff.Segmenter.encode` takes; the bytes of a file are sent as they are.
            phrases: one or several.
            min_confidence: 0..1: less sure answers have no mask.
            wanted: `candidates=True` and `heat=True` add these to the documents.

        Raises:
            InputError: the image cannot be read.
            ServerError: the server refused, failed or could not be reached.
        """
        data, texts = _file_of(image), _texts(phrases)
        fields = {"format": "png", "min_confidence": min_confidence, **wanted}
        with self._ask("/v1/segment", data, texts, fields) as response:
            document = _parsed(response.read())
        return [_answer(each, document["image_id"]) for each in document["prompt_results"]]

    def stream(
        self, image: ImageLike, phrases: str | Iterable[str], *, min_confidence: float | None = None
    ) -> Iterator[Answer]:
        """Yield the answer to each phrase when it is ready; otherwise as `segment`."""
        data, texts = _file_of(image), _texts(phrases)
        fields = {"format": "png", "min_confidence": min_confidence}
        with self._ask("/v1/segment/stream", data, texts, fields) as response:
            for name, document in _events(response):
                if name == "error":
                    raise _error_of(None, document)
                if name == "done":
                    return
                yield _answer(document, image_id_of(data))
        raise ServerError("the connection was lost before all answers had come")

    def _ask(
        self, path: str, data: bytes, texts: Sequence[str], fields: Mapping[str, Any]
    ) -> http.client.HTTPResponse:
        """Send a request until it is answered; name the image by its id where the server knows it."""
        image_id = image_id_of(data)
        body: dict[str, Any] = {**fields, "prompts": [{"text": text} for text in texts]}
        if image_id in self._known:
            try:
                return self._send(path, {**body, "image_id": image_id})
            except ServerError as error:
                if error.kind != "unknown_image":
                    raise
        value = base64.b64encode(data).decode("ascii")
        response = self._send(path, {**body, "image": {"type": "base64", "value": value}})
        self._known[image_id] = None
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return response

    def _send(self, path: str, document: Mapping[str, Any]) -> http.client.HTTPResponse:
        body, wait = json.dumps(document).encode(), 0.25
        for attempt in range(1, self._attempts + 1):
            last = attempt == self._attempts
            try:
                response = self._post(path, body)
            except (OSError, http.client.HTTPException) as error:
                if last:
                    raise ServerError(f"{self._host} cannot be reached: {error}") from error
                after = wait
            else:
                if response.status == 200:
                    return response
                with response:
                    failure = _error_of(response.status, _parsed(response.read()))
                if last or response.status not in _RETRIED:
                    raise failure
                after = max(wait, float(response.headers.get("Retry-After") or 0))
            time.sleep(after * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the clients
            wait = min(8.0, wait * 2)
        raise AssertionError  # the last attempt returns or raises

    def _post(self, path: str, body: bytes) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._connect(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("POST", self._path + path, body=body, headers=headers)
            return connection.getresponse()
        except BaseException:
            connection.close()
            raise


def _file_of(image: ImageLike) -> bytes:
    """Return the bytes of an image file; pixels become a PNG."""
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return read_path(Path(image))
    return png(read_image(image))


def _texts(phrases: str | Iterable[str]) -> list[str]:
    return [phrases] if isinstance(phrases, str) else list(phrases)


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and document of each server-sent event."""
    name = ""
    for line in response:
        text = line.decode().rstrip("\r\n")
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield name, _parsed(text.removeprefix("data: ").encode())


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ServerError("the server's answer is not JSON; is it refdiff serve?") from error
    if not isinstance(document, dict):
        raise ServerError("the server's answer is no JSON object; is it refdiff serve?")
    return document


def _error_of(status: int | None, document: Mapping[str, Any]) -> ServerError:
    error = document.get("error", {})
    return ServerError(str(error.get("message", "the server failed")), status=status, kind=error.get("type"))


def _answer(document: Mapping[str, Any], image_id: str) -> Answer:
    found = document["predictions"][0] if document["predictions"] else {}
    mask = None
    if found:
        with Image.open(io.BytesIO(base64.b64decode(found["masks"]))) as picture:
            mask = np.asarray(picture) > 0
    return Answer(
        phrase=document["echo"]["text"],
        mask=mask,
        confidence=found.get("confidence"),
        score=found.get("score"),
        reason=document["reason"],
        cautions=tuple(document["cautions"]),
        image_id=image_id,
        document=document,
    )
