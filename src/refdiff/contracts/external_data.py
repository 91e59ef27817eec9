"""Find the data files that an ONNX graph names, without onnx: a device does not have it.

The file is walked as protobuf wire format. A part is entered only if the key "location" occurs in its bytes,
so weights inside the file cost one search.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_LOCATION = b"location"
"""Key of the entry that names the file. Source: onnx.proto, TensorProto.external_data."""

_PARTS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Message -> its fields that can hold a tensor, by number. Source: onnx.proto."""

_DEEPEST = 64
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
"""Wire type -> bytes of a value."""


@dataclass(frozen=True)
class DataReference:
    """The place of one tensor's values."""

    location: str
    offset: int
    length: int | None
    """In bytes; None up to the end of the file."""


def find_external_data(model: bytes) -> tuple[DataReference, ...]:
    """Return the place of every tensor that lies outside the model's file.

    Args:
        model: a serialized ModelProto.

    Raises:
        ValueError: it is not protobuf, or an offset or length is no number.
    """
    return tuple(_references(model, "model", 0, len(model), 0))


def _references(data: bytes, kind: str, start: int, end: int, depth: int) -> Iterator[DataReference]:
    if data.find(_LOCATION, start, end) < 0:
        return
    if depth > _DEEPEST:
        raise ValueError(f"its graphs are nested more than {_DEEPEST} deep")
    if kind == "tensor":
        yield from _tensor_references(data, start, end)
        return
    for number, first, last in _fields(data, start, end):
        part = _PARTS[kind].get(number)
        if part is not None:
            yield from _references(data, part, first, last, depth + 1)


def _tensor_references(data: bytes, start: int, end: int) -> Iterator[DataReference]:
    """Yield one reference per location that the tensor states; offsets are compared with every one."""
    entries: list[tuple[str, str]] = []
    for number, first, last in _fields(data, start, end):
        if number == 13:
            fields = {key: data[a:b].decode("utf-8") for key, a, b in _fields(data, first, last)}
            entries.append((fields.get(1, ""), fields.get(2, "")))
    offset = max((_whole(value) for key, value in entries if key == "offset"), default=0)
    length = max((_whole(value) for key, value in entries if key == "length"), default=None)
    for key, value in entries:
        if key == "location":
            yield DataReference(value, offset, length)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise ValueError(f"an offset or length is {text[:40]!r}, expected a whole number")
    return int(text)


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field that holds bytes.

    Raises:
        ValueError: the bytes end too early, or hold what protobuf does not.
    """
    while start < end:
        tag, start = data[start], start + 1  # most take one byte
        if tag >= 0x80:
            tag, start = _varint(data, start - 1, end)
        wire = tag & 7
        if wire == _BYTES:
            size, start = _varint(data, start, end)
            if size > end - start:
                raise ValueError("it is cut off, or is not an ONNX graph")
            yield tag >> 3, start, start + size
            start += size
        elif wire == _VARINT:
            _, start = _varint(data, start, end)
        elif wire in _FIXED:
            start += _FIXED[wire]
        else:
            raise ValueError("it is damaged, or is not an ONNX graph")
    if start > end:
        raise ValueError("it is cut off, or is not an ONNX graph")


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    if start < end and data[start] < 0x80:
        return data[start], start + 1
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = data[start]
        value, start = value | (byte & 0x7F) << shift, start + 1
        if byte < 0x80:
            return value, start
    raise ValueError("it is cut off, or is not an ONNX graph")
