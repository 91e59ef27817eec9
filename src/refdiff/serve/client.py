"""The client of `refdiff serve`; it needs numpy and Pillow, and none of the models."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
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
from refdiff.errors import InputError
from refdiff.runtime.image import ImageLike, png, read_image, read_path
from refdiff.serve.attempts import Attempts, ServerError, error_of, lost_is_error, parsed, refusal
from refdiff.serve.request import image_id_of

_MOST_KNOWN = 256
"""Ids of images that a client remembers."""


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

    A request is repeated after a lost connection, and where the server or a gateway asks for it: the answer
    to a request is the same each time, so nothing is done twice. An image is sent once; later requests name
    it, and it is sent again to a server that does not keep it. Every request has the image's id in
    X-Session-Id, so that a router of several servers can give all questions about an image to one of them.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        token: of the server.
        timeout_s: without a sign of the server in one attempt, in s.
        attempts: tries of one request.
        deadline_s: of a request with all its attempts, in s: none begins later, or waits longer for the
            server; None: the attempts are limited alone.

    Raises:
        InputError: not an http or https URL.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 120.0,
        attempts: int = 5,
        deadline_s: float | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"got server {url!r}, expected a URL such as http://127.0.0.1:8000")
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._token = token
        self._limits = (attempts, timeout_s, deadline_s)
        self._known: OrderedDict[str, None] = OrderedDict()
        self.repeated = 0
        """Attempts so far that were not the first of their request."""

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
        question = _Question(_file_of(image), {"min_confidence": min_confidence, **wanted})
        texts, attempts = _texts(phrases), Attempts(*self._limits)
        while True:
            named = question.image_id in self._known
            try:
                with self._ask("/v1/segment", question, texts, attempts) as response, lost_is_error():
                    document = parsed(response.read())
                return [_answer(each, question.image_id) for each in _results(document, len(texts))]
            except ServerError as error:
                self._prepare_next(error, question.image_id, attempts, named=named)

    def stream(
        self, image: ImageLike, phrases: str | Iterable[str], *, min_confidence: float | None = None
    ) -> Iterator[Answer]:
        """Yield the answer to each phrase when it is ready; otherwise as `segment`.

        After a lost connection only the phrases without an answer are asked again.
        """
        question = _Question(_file_of(image), {"min_confidence": min_confidence})
        texts, attempts, answered = _texts(phrases), Attempts(*self._limits), 0
        while True:
            named, first = question.image_id in self._known, answered
            try:
                with self._ask("/v1/segment/stream", question, texts[first:], attempts) as response:
                    for document in _streamed(response, len(texts) - first):
                        answered += 1
                        document["prompt_index"] += first
                        yield _answer(document, question.image_id)
            except ServerError as error:
                self._prepare_next(error, question.image_id, attempts, named=named)
            else:
                return

    def _prepare_next(self, error: ServerError, image_id: str, attempts: Attempts, *, named: bool) -> None:
        """Wait before the next attempt, or raise the error if there is none.

        Args:
            error: of the last attempt.
            image_id: of the request.
            attempts: of the request.
            named: whether the last attempt had the id in place of the image: the server may have dropped it.
        """
        if error.kind == "unknown_image" and named:
            self._known.pop(image_id, None)
        else:
            time.sleep(attempts.pause_s(error))
        self.repeated += 1

    def _ask(
        self, path: str, question: _Question, texts: Sequence[str], attempts: Attempts
    ) -> http.client.HTTPResponse:
        """Send a request once, with the image's id where the server should know it."""
        document = {**question.fields, "format": "png", "prompts": [{"text": text} for text in texts]}
        if question.image_id in self._known:
            document["image_id"] = question.image_id
        else:
            value = base64.b64encode(question.image).decode("ascii")
            document["image"] = {"type": "base64", "value": value}
        with lost_is_error(self._host):
            response = self._post(path, json.dumps(document).encode(), question.image_id, attempts.timeout_s)
            if response.status != 200:
                with response:
                    raise refusal(response, response.read())
        self._known[question.image_id] = None
        self._known.move_to_end(question.image_id)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return response

    def _post(self, path: str, body: bytes, image_id: str, timeout_s: float) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", "Connection": "close", "X-Session-Id": image_id}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._connect(self._host, self._port, timeout=timeout_s)
        try:
            try:
                connection.request("POST", self._path + path, body=body, headers=headers)
            except (
                BrokenPipeError,
                ConnectionResetError,
            ):  # refused before it was all sent: why may be there
                if connection.sock is None:
                    raise
            response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:
            connection.sock.close()  # the response holds it until it is closed
        return response


class _Question:
    """What is asked in every attempt of a request."""

    def __init__(self, image: bytes, fields: dict[str, Any]) -> None:
        self.image, self.fields, self.image_id = image, fields, image_id_of(image)


def _file_of(image: ImageLike) -> bytes:
    """Return the bytes of an image file; pixels become a PNG."""
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return read_path(Path(image))
    return png(read_image(image))


def _texts(phrases: str | Iterable[str]) -> list[str]:
    return [phrases] if isinstance(phrases, str) else list(phrases)


def _streamed(response: http.client.HTTPResponse, count: int) -> Iterator[dict[str, Any]]:
    """Yield the document of each answer.

    Raises:
        ServerError: an event says so, or the connection ended before so many answers had come.
    """
    with lost_is_error():
        for name, document in _events(response):
            if name == "error":
                raise error_of(None, document, 0.0)
            if name == "done":
                break
            count -= 1
            yield document
    if count:
        raise ServerError("the connection was lost before all answers had come", retry_after_s=0)


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and document of each server-sent event."""
    name = ""
    for line in response:
        if not line.endswith(b"\n"):
            return  # half a line: the connection was lost
        text = line.decode().rstrip("\r\n")
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield name, parsed(text.removeprefix("data: ").encode())


def _results(document: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    found = document.get("prompt_results")
    if not isinstance(found, list) or len(found) != count:
        raise ServerError(f"the server's answer has no results of {count} phrases; is it refdiff serve?")
    return found


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
