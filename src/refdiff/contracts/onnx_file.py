"""Read a graph's nodes and weights from its ONNX file, without the onnx package.

Only what an exported graph has is read: nodes, attributes, initializers and their external data. The field
numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.contracts.plain_file import read_plain
from refdiff.contracts.session import Array
from refdiff.errors import BundleError

_Fields = dict[int, list[Any]]
"""Field number -> its values in order: an int, or the bytes of a string, a message or a packed list."""

_DTYPES: Mapping[int, str] = {1: "<f4", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
"""`TensorProto.DataType` -> the numpy dtype of its raw data, little endian."""

_BFLOAT16, _FLOAT8 = 16, 17


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator of a graph."""

    operator: str
    inputs: tuple[str, ...]
    """An omitted input is ""."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """int, float or list of ints; others are left out."""


@dataclass(frozen=True, kw_only=True)
class OnnxGraph:
    """A graph as its file states it."""

    nodes: tuple[Node, ...]
    """In an order in which every node runs after those whose outputs it reads."""
    weights: Mapping[str, Array]
    outputs: tuple[str, ...]


def read_onnx(path: Path) -> OnnxGraph:
    """Read a graph with its weights; bfloat16 and float8 ones as float32.

    Raises:
        BundleError: the file, or data it names, is missing, damaged, or of an unsupported kind.
    """
    try:
        (graph,) = _fields(memoryview(read_plain(path)))[7]
        fields = _fields(graph)
        return OnnxGraph(
            nodes=tuple(_node(_fields(each)) for each in fields.get(1, ())),
            weights=dict(_tensor(_fields(each), path.parent) for each in fields.get(5, ())),
            outputs=tuple(_text(_fields(each)[1][0]) for each in fields.get(12, ())),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BundleError(f"{path} cannot be read on the host ({error}); export again") from error


def _fields(message: memoryview) -> _Fields:
    """Split a message into its fields."""
    found: _Fields = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        value: Any
        if kind == 0:
            value, at = _varint(message, at)
        else:
            length = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                length, at = _varint(message, at)
            if length is None or at + length > len(message):
                raise ValueError(f"damaged at byte {at} of a message")
            value, at = message[at : at + length], at + length
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a variable-length integer, and the offset after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _integers(values: list[Any]) -> Iterator[int]:
    """Yield the signed integers of a repeated field, packed or not."""
    for value in values:
        at, packed = 0, not isinstance(value, int)
        while packed and at < len(value):
            each, at = _varint(value, at)
            yield _signed(each)
        if not packed:
            yield _signed(value)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8")


def _node(fields: _Fields) -> Node:
    return Node(
        operator=_text(fields[4][0]),
        inputs=tuple(map(_text, fields.get(1, ()))),
        outputs=tuple(map(_text, fields.get(2, ()))),
        attributes=dict(_attribute(_fields(each)) for each in fields.get(5, ())),
    )


def _attribute(fields: _Fields) -> tuple[str, Any]:
    value: Any = None
    if 2 in fields:
        value = float(np.frombuffer(fields[2][0], "<f4")[0])
    elif 3 in fields:
        value = _signed(fields[3][0])
    elif 8 in fields:
        value = list(_integers(fields[8]))
    return _text(fields[1][0]), value


def _tensor(fields: _Fields, folder: Path) -> tuple[str, Array]:
    kind, name = fields[2][0], _text(fields[8][0])
    shape = tuple(_integers(fields.get(1, [])))
    dtype = {_BFLOAT16: "<u2", _FLOAT8: "u1"}.get(kind) or _DTYPES.get(kind)
    if dtype is None:
        raise ValueError(f"{name} has data type {kind}")
    if 13 in fields:
        values = _external(fields[13], folder, dtype, shape)
    elif 9 in fields:
        values = np.frombuffer(fields[9][0], dtype)
    elif kind == 7 and 7 in fields:
        values = np.fromiter(_integers(fields[7]), np.int64)
    elif kind == 1 and 4 in fields:
        values = np.frombuffer(b"".join(map(bytes, fields[4])), dtype)
    else:
        raise ValueError(f"{name} holds its values in an unsupported way")
    if kind == _BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    elif kind == _FLOAT8:
        values = np.asarray(_float8()[values])
    return name, values.reshape(shape)


def _float8() -> Array:
    """Return the value of every byte of a float8 E4M3FN: sign, 4 bits of exponent, 3 of mantissa: [256]."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = np.where(exponent, np.ldexp(8 + mantissa, exponent - 10), np.ldexp(mantissa, -9))
    size[byte & 127 == 127] = np.nan
    return np.asarray(np.where(byte >> 7, -size, size), np.float32)


def _external(entries: list[Any], folder: Path, dtype: str, shape: tuple[int, ...]) -> Array:
    """Read a tensor from the data file in the folder of the graph."""
    stated = {_text(each[1][0]): _text(each[2][0]) for each in map(_fields, entries)}
    location = stated["location"]
    if Path(location).name != location:
        raise ValueError(f"its data lies outside its folder, at {location}")
    count = int(np.prod(shape, dtype=np.int64))
    offset = int(stated.get("offset", 0))
    return np.asarray(np.memmap(folder / location, dtype, "r", offset, (count,)))  # not copied
