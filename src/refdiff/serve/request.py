"""Requests of the HTTP API: read from JSON or multipart, checked before anything is decoded.

The field names are those of roboflow's SAM 3 request (roboflow/inference, `entities/requests/sam3.py`) where
they mean the same: `image`, `image_id`, `prompts[].text`, `prompts[].output_prob_thresh`, `format`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from refdiff.contracts.session import ImageArray
from refdiff.errors import InputError

MaskFormat = Literal["rle", "polygon", "png"]
FORMATS: tuple[str, ...] = get_args(MaskFormat)

MOST_PROMPTS = 64
"""Phrases of one request."""

MOST_VALUES = 1 << 16
"""Values in the JSON document of a request; a phrase and its options are a few."""

_MOST_LISTS = 1 << 20
"""Lists and objects in any JSON document: each takes up to 30 times its bytes in memory."""

_SMALL_BYTES = 1 << 16
"""Bodies up to so many bytes are read in the event loop, larger ones in a thread."""

_BASE64_STEP = 1 << 20
"""Characters of base64 that are decoded at a time: other threads run in between."""

_Found = TypeVar("_Found")

_FIELDS = ("image", "image_id", "prompts", "format", "min_confidence", "candidates", "heat")
_PROMPT_FIELDS = ("type", "text", "output_prob_thresh", "min_confidence")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A phrase, and how sure its answer has to be."""

    text: str
    min_confidence: float | None = None
    """0..1: an answer of a lower confidence, or of none, has no mask; None: every answer has its mask."""


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What a client asks of one image."""

    prompts: tuple[Prompt, ...]
    image: bytes | None = field(default=None, repr=False)
    """The bytes of an image file; None: the image is named by its id."""
    image_id: str | None = None
    """Id that an earlier answer gave to its image."""
    format: MaskFormat = "rle"
    """COCO run lengths, polygons, or PNG files in base64."""
    candidates: bool = False
    """Whether to return every candidate with its scores."""
    heat: bool = False
    """Whether to return the heatmap, as a PNG file in base64."""


def image_id_of(image: bytes | ImageArray) -> str:
    """Return the id of an image file, or of pixels [y, x, 3]: equal bytes, and equal sizes, have the same."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()[:32]
    digest = hashlib.sha256(f"pixels {image.shape}\0".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()[:32]


async def in_thread_if_large(size: int, read: Callable[..., _Found], *args: Any) -> _Found:
    """Call a function that reads a body of so many bytes; other clients are answered meanwhile."""
    return read(*args) if size <= _SMALL_BYTES else await asyncio.to_thread(read, *args)


def read_json(body: bytes) -> SegmentRequest:
    """Read a request from a JSON document.

    Raises:
        InputError: not JSON, or a field is missing, unknown or wrong.
    """
    document = parse_json(body, most_values=MOST_VALUES)
    image = document.get("image")
    return _request(document, None if image is None else _image_of(image))


def read_form(fields: Sequence[tuple[str, str | bytes]]) -> SegmentRequest:
    """Read a request from the parts of a multipart form, in order; `prompt` may be there many times.

    Args:
        fields: name and text of each part; bytes of the part `image`, which is a file.

    Raises:
        InputError: a part is missing, unknown, there twice or wrong.
    """
    document: dict[str, Any] = {"prompts": [value for name, value in fields if name == "prompt"]}
    image: bytes | None = None
    for name, value in fields:
        if name == "prompt":
            continue
        if name in document or (name == "image" and image is not None):
            raise InputError(f"got the part {name!r} twice, expected it once")
        if name == "image":
            image = value if isinstance(value, bytes) else value.encode()
        else:
            document[name] = _form_value(name, value)
    return _request(document, image)


def parse_json(body: bytes, *, most_values: int | None = None) -> Mapping[str, Any]:
    """Parse a JSON object.

    Args:
        body: the document.
        most_values: that it may have, counted by its commas before it is parsed; None: any number.

    Raises:
        InputError: it is none, nested too deeply, or has too many values, lists or objects.
    """
    lists = body.count(b"[") + body.count(b"{")
    if lists > _MOST_LISTS:
        raise InputError(f"got JSON of {lists} lists and objects, expected at most {_MOST_LISTS}")
    if most_values is not None and (values := body.count(b",") + lists) > most_values:
        raise InputError(f"got JSON of {values} values, expected at most {most_values}; ask for less at once")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"got a body that is not JSON ({_short(error)}); send a JSON object") from error
    if not isinstance(document, dict):
        raise InputError(f"got a JSON {type(document).__name__}, expected an object with image and prompts")
    return document


def _request(document: Mapping[str, Any], image: bytes | None) -> SegmentRequest:
    _check_names(document, _FIELDS, "the request")
    image_id = document.get("image_id")
    if image_id is not None and not (isinstance(image_id, str) and 0 < len(image_id) <= 128):
        raise InputError("got an image_id that is no text of 1 to 128 characters; use the one of an answer")
    if (image is None) == (image_id is None):
        raise InputError(
            "expected either image or image_id, "
            f"got {'neither' if image is None else 'both'}; send the image once, then its image_id"
        )
    wanted = document.get("format", "rle")
    if wanted not in FORMATS:
        raise InputError(f"got format {wanted!r}, expected one of {', '.join(FORMATS)}")
    least = _probability(document.get("min_confidence"), "min_confidence")
    return SegmentRequest(
        image=image,
        image_id=image_id,
        prompts=_prompts(document.get("prompts"), least),
        format=wanted,
        candidates=_flag(document, "candidates"),
        heat=_flag(document, "heat"),
    )


def _prompts(prompts: object, least: float | None) -> tuple[Prompt, ...]:
    if not isinstance(prompts, list) or not prompts:
        raise InputError('expected prompts, a list such as [{"text": "the red mug"}]')
    if len(prompts) > MOST_PROMPTS:
        raise InputError(
            f"got {len(prompts)} prompts, expected at most {MOST_PROMPTS}; ask again for the rest"
        )
    return tuple(_prompt(each, least) for each in prompts)


def _prompt(prompt: object, least: float | None) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(text=prompt, min_confidence=least)
    if not isinstance(prompt, dict):
        raise InputError(f"got a prompt of type {type(prompt).__name__}, expected a text or an object")
    _check_names(prompt, _PROMPT_FIELDS, "a prompt")
    if prompt.get("type", "text") != "text":
        raise InputError(
            f"got a prompt of type {prompt['type']!r}, expected text; other prompts are not served"
        )
    text = prompt.get("text")
    if not isinstance(text, str):
        raise InputError("got a prompt without a text, expected one such as 'the red mug'")
    own = prompt.get("min_confidence", prompt.get("output_prob_thresh"))
    return Prompt(text=text, min_confidence=least if own is None else _probability(own, "output_prob_thresh"))


def _image_of(image: object) -> bytes:
    """Return the bytes of an image in base64: a text, or {"type": "base64", "value": text}."""
    if isinstance(image, dict):
        if image.get("type") != "base64":
            raise InputError(
                f"got an image of type {image.get('type')!r}, expected base64; addresses are not fetched"
            )
        image = image.get("value")
    if not isinstance(image, str):
        raise InputError("got an image that is no text, expected the file's bytes in base64")
    try:
        return decode_base64(image.partition("base64,")[2] or image)
    except ValueError as error:
        raise InputError(
            f"got an image that is not base64 ({_short(error)}); encode the file's bytes"
        ) from error


def decode_base64(text: str | bytes) -> bytes:
    """Decode base64 with padding, part by part, so that other threads are not held up.

    Raises:
        ValueError: it is none, or there is padding before the end.
    """
    parts = [text[at : at + _BASE64_STEP] for at in range(0, len(text), _BASE64_STEP)]
    if any(part[-1:] in ("=", b"=") for part in parts[:-1]):
        raise ValueError("padding before the end")
    return b"".join(base64.b64decode(part, validate=True) for part in parts)


def _check_names(document: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    unknown = [name for name, value in document.items() if name not in known and value is not None]
    if unknown:
        raise InputError(f"got {_quoted(unknown[0])} in {what}, expected only {', '.join(known)}")


def _probability(value: object, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(f"got {name} {_quoted(value)}, expected a number from 0 to 1")
    return float(value)


def _flag(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"got {name} {_quoted(value)}, expected true or false")
    return value


def _form_value(name: str, value: str | bytes) -> object:
    """Return a part's text as the JSON value that it stands for."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    if name in ("image_id", "format"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:80] if str(error) else type(error).__name__
