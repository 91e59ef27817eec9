"""Bodies of the Open Inference Protocol (KServe v2) with Triton's binary tensor extension, read and written.

In: a request's body and its header `Inference-Header-Content-Length`. Out: arrays by name, and which outputs
are asked for; and from arrays the body of the response. Nothing is allocated by a stated shape.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.errors import InputError
from refdiff.serve.request import parse_json
from refdiff.serve.tensors import INPUT_OF, MODEL_NAME, MODEL_VERSION, OUTPUT_OF, OUTPUTS, Tensor, Tensors

HEADER_LENGTH = "inference-header-content-length"

MOST_JSON_VALUES = 1 << 24
"""Values of an output that is written as JSON."""

_LENGTH = struct.Struct("<I")
_MOST_ID = 256


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """A request whose body was read."""

    id: str | None
    """Returned with the response."""
    tensors: Tensors = field(repr=False)
    outputs: Mapping[str, bool]
    """Name of each output that is asked for, in order -> whether as binary data."""


def read_request(body: bytes, header_length: str | None) -> InferenceRequest:
    """Read the body of a request.

    Args:
        body: JSON, then the binary data of the inputs that announce some, in their order.
        header_length: value of the header `HEADER_LENGTH`; None: the body is JSON alone.

    Raises:
        InputError: it cannot be read, or does not keep to the contract in `tensors`.
    """
    document, data = _split(body, header_length)
    found_id = document.get("id")
    if found_id is not None and not (isinstance(found_id, str) and len(found_id) <= _MOST_ID):
        raise InputError(f"got an id that is no text of at most {_MOST_ID} characters; shorten it")
    return InferenceRequest(
        id=found_id,
        tensors=_read_inputs(_objects(document, "inputs"), data),
        outputs=_read_outputs(_objects(document, "outputs"), _parameters(document, "the request")),
    )


def _split(body: bytes, header_length: str | None) -> tuple[Mapping[str, Any], memoryview]:
    if header_length is None:
        return parse_json(body), memoryview(b"")
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20):
        raise InputError(f"got {HEADER_LENGTH} {header_length[:40]!r}, expected the bytes of the JSON part")
    length = int(header_length)
    if not 0 < length <= len(body):
        raise InputError(f"got {HEADER_LENGTH} {length}, expected 1 to {len(body)}, the bytes of the body")
    return parse_json(body[:length]), memoryview(body)[length:]


def _objects(document: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    entries = document.get(name)
    if entries is None:
        return ()
    known = INPUT_OF if name == "inputs" else OUTPUT_OF
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise InputError(f"expected {name}, a list of objects, each with the name of a tensor")
    names = [each.get("name") for each in entries]
    for number, each in enumerate(names):
        if not isinstance(each, str) or each not in known:
            raise InputError(f"got {str(each)[:60]!r} in {name}, expected only {', '.join(known)}")
        if each in names[:number]:
            raise InputError(f"got {each} twice in {name}, expected it once")
    return entries


def _parameters(document: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InputError(f"got parameters of {what} that are no object; send one, or none")
    return parameters


def _read_inputs(entries: Sequence[Mapping[str, Any]], data: memoryview) -> Tensors:
    tensors, at = dict[str, NDArray[Any]](), 0
    for entry in entries:
        tensor = INPUT_OF[entry["name"]]
        shape = _read_shape(entry, tensor)
        size = _binary_size(entry, tensor.name)
        if size is None:
            tensors[tensor.name] = _from_json(entry.get("data"), tensor, shape)
            continue
        if at + size > len(data):
            raise InputError(
                f"{tensor.name} announces {size} bytes of binary data, but {len(data) - at} are left; check "
                f"binary_data_size and {HEADER_LENGTH}"
            )
        tensors[tensor.name] = _from_binary(data[at : at + size], tensor, shape)
        at += size
    if at != len(data):
        raise InputError(
            f"got {len(data)} bytes of binary data, the inputs announce {at}; check binary_data_size and "
            f"{HEADER_LENGTH}"
        )
    return tensors


def _read_shape(entry: Mapping[str, Any], tensor: Tensor) -> tuple[int, ...]:
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype != tensor.datatype:
        raise InputError(
            f"got {tensor.name} of datatype {str(datatype)[:40]!r}, expected {tensor.datatype}; convert it"
        )
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise InputError(f"got a shape of {tensor.name} that is no list of whole numbers")
    tensor.check_shape(shape)
    return tuple(shape)


def _binary_size(entry: Mapping[str, Any], name: str) -> int | None:
    parameters = _parameters(entry, name)
    if "shared_memory_region" in parameters:
        raise InputError(f"{name} is in shared memory, which is not served; send its data")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise InputError(f"got a binary_data_size of {name} that is no whole number of 0 or more")
    if entry.get("data") is not None:
        raise InputError(f"{name} has both data and binary_data_size; send one of them")
    return size


def _from_binary(data: memoryview, tensor: Tensor, shape: tuple[int, ...]) -> NDArray[Any]:
    count = math.prod(shape)
    if tensor.datatype == "BYTES":
        return np.array(_elements(data, tensor.name, count), np.object_).reshape(shape)
    dtype = tensor.dtype.newbyteorder("<")
    if count * dtype.itemsize != len(data):
        raise InputError(
            f"got {len(data)} bytes of {tensor.name}, expected {count * dtype.itemsize} for the shape "
            f"{list(shape)}"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(tensor.dtype, copy=False)


def _elements(data: memoryview, name: str, count: int) -> list[bytes]:
    """Return the elements of a tensor of BYTES: the length of each in 4 bytes, then its bytes."""
    elements, at = [], 0
    for _ in range(count):
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(data, at)[0] if begin <= len(data) else begin
        if at > len(data):
            break
        elements.append(bytes(data[begin:at]))
    if len(elements) != count or at != len(data):
        raise InputError(
            f"got binary data of {name} that are not {count} elements; encode each as its length in 4 bytes, "
            "little endian, and its bytes"
        )
    return elements


def _from_json(data: object, tensor: Tensor, shape: tuple[int, ...]) -> NDArray[Any]:
    values, count = _flatten(data, tensor, len(shape)), math.prod(shape)
    if len(values) != count:
        raise InputError(f"got {len(values)} values of {tensor.name}, expected {count} for {list(shape)}")
    if not _VALID[tensor.datatype](values):
        raise InputError(f"got data of {tensor.name} with values that are not {tensor.datatype}")
    if tensor.datatype == "BYTES":
        values = [each.encode(errors="surrogatepass") for each in values]
    return np.array(values, tensor.dtype).reshape(shape)


def _flatten(data: object, tensor: Tensor, depth: int) -> list[Any]:
    """Return the values of a list, or of lists in lists up to the depth of the shape, row by row."""
    if not isinstance(data, list):
        raise InputError(f"{tensor.name} has no data; send a list, or binary data with binary_data_size")
    while depth > 1 and data and all(isinstance(each, list) for each in data):
        data, depth = list(chain.from_iterable(data)), depth - 1
    return data


def _all_numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float} and all(abs(each) < 1e38 for each in values)


def _all_bytes(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int} and min(values) >= 0 and max(values) <= 255


def _all_texts(values: list[Any]) -> bool:
    return set(map(type, values)) <= {str}


_VALID: Mapping[str, Callable[[list[Any]], bool]] = {
    "BYTES": _all_texts,
    "FP32": _all_numbers,
    "UINT8": _all_bytes,
}
"""Datatype of an input -> whether JSON values are of it; there is at least one."""


def _read_outputs(entries: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> Mapping[str, bool]:
    usual = _flag(parameters, "binary_data_output")
    if not entries:
        return {each.name: usual for each in OUTPUTS}
    found = {}
    for entry in entries:
        own = _parameters(entry, entry["name"])
        if "classification" in own or "shared_memory_region" in own:
            raise InputError(f"{entry['name']} is returned as a tensor only; leave out its parameters")
        found[entry["name"]] = _flag(own, "binary_data", usual=usual)
    return found


def _flag(parameters: Mapping[str, Any], name: str, *, usual: bool = False) -> bool:
    value = parameters.get(name, usual)
    if not isinstance(value, bool):
        raise InputError(f"got {name} {str(value)[:40]!r}, expected true or false")
    return value


def write_response(request: InferenceRequest, arrays: Tensors) -> tuple[bytes, int | None]:
    """Write the outputs that a request asks for.

    Args:
        request: names them, and their form.
        arrays: all of them.

    Returns:
        The body, and the bytes of its JSON part; None for the latter if there is no other.

    Raises:
        InputError: an output is too large for JSON.
    """
    entries, parts = [], []
    for name, binary in request.outputs.items():
        tensor, array = OUTPUT_OF[name], arrays[name]
        entry: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": list(array.shape)}
        if binary:
            parts.append(_to_binary(array, tensor))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = _to_json(array, tensor)
        entries.append(entry)
    known_id = {} if request.id is None else {"id": request.id}
    document = {"model_name": MODEL_NAME, "model_version": MODEL_VERSION, **known_id, "outputs": entries}
    head = json.dumps(document, allow_nan=False).encode()
    return b"".join([head, *parts]), len(head) if parts else None


def _to_binary(array: NDArray[Any], tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(each)) + each for each in array.ravel())
    return array.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()


def _to_json(array: NDArray[Any], tensor: Tensor) -> list[Any]:
    if array.size > MOST_JSON_VALUES:
        raise InputError(
            f"{tensor.name} has {array.size} values, JSON takes at most {MOST_JSON_VALUES}; ask for it with "
            "binary_data, or leave it out"
        )
    values = array.ravel().tolist()
    return [each.decode() for each in values] if tensor.datatype == "BYTES" else values
