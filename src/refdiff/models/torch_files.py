"""torch's files: the zip archives of `torch.save` and of TorchScript, and the older pickle.

In: a path. Out: what the file's pickle describes, and its tensors, which stay in the file (memory-mapped)
until they are used. Nothing of torch reads the file: pickles are read as data (`pickled`), and the code of
TorchScript is not read at all.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refdiff.contracts.plain_file import open_plain
from refdiff.models.pickled import ForbiddenError, ScriptObject, StoredTensor, read_pickle
from refdiff.models.zip_entries import AmbiguousError, locate, read_at, read_entries

_LARGEST_PICKLE = 64 << 20
"""Bytes. A full Stable Diffusion checkpoint has 0.4 MB."""

_MOST_TENSORS = 100_000
_DEEPEST = 64
"""Tensors of a TorchScript archive, and levels of its modules."""

_DTYPES: Mapping[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.UntypedStorage": torch.uint8,
}

_LEGACY_START = (0x1950A86A20F9469CFC6C, 1001)
"""Magic number and version. Source: torch/serialization.py."""


@dataclass(frozen=True)
class TorchFile:
    """A file's document, and where its storages are."""

    path: Path
    document: Any
    spans: Mapping[str, tuple[int, int]]
    """Key of a storage -> its first byte in the file, and its bytes."""

    def tensors(self, stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
        """Map the file into memory, and return views of it.

        Raises:
            ValueError: a storage is not in the file, or a tensor leaves its storage.
        """
        size = self.path.stat().st_size
        # Private: writing to a tensor does not change the file.
        mapped: Any = torch.UntypedStorage.from_file(str(self.path), shared=False, nbytes=size)
        return {name: self._tensor(mapped, tensor, name) for name, tensor in stored.items()}

    def _tensor(self, mapped: Any, stored: StoredTensor, name: str) -> torch.Tensor:
        storage = stored.storage
        own = _DTYPES.get(storage.kind)
        dtype = own if stored.dtype is None else getattr(torch, stored.dtype.removeprefix("torch."), None)
        if own is None or not isinstance(dtype, torch.dtype):
            raise TypeError(f"tensor {name} has the type {stored.dtype or storage.kind}")
        start, nbytes = self.spans[storage.key]
        if storage.elements * own.itemsize != nbytes:
            raise ValueError(
                f"storage {storage.key} of {name} has {nbytes} bytes, not {storage.elements} elements"
            )
        count, last = 1, stored.offset
        for length, step in zip(stored.size, stored.stride, strict=True):
            count, last = count * length, last + max(length - 1, 0) * step
        elements = nbytes // dtype.itemsize
        if count > elements or (count and last >= elements):
            raise ValueError(f"tensor {name} leaves its storage")
        piece = mapped[start : start + nbytes]
        if start % dtype.itemsize:  # possible in older files; not every processor reads such numbers
            piece = piece.clone()
        view = torch.empty(0, dtype=dtype)
        view.set_(piece, stored.offset, stored.size, stored.stride)
        return view


def read_archive(path: Path) -> TorchFile:
    """Read a zip archive of `torch.save` or of TorchScript.

    Raises:
        AmbiguousError: two readers may read it differently, or it claims too much.
        Exception: it is damaged.
    """
    with open_plain(path) as stream:
        entries = read_entries(stream)
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise AmbiguousError(f"it holds {len(pickles)} files FOLDER/data.pkl, expected 1")
        root = pickles[0].removesuffix("data.pkl")
        foreign = next((name for name in entries if not name.startswith(root)), None)
        if foreign is not None:
            raise AmbiguousError(f"it holds {foreign} outside of {root}")
        order = entries.get(f"{root}byteorder")
        if order is not None and read_at(stream, locate(stream, order), min(order.nbytes, 9)) != b"little":
            raise AmbiguousError("its bytes are not little-endian")
        pickle = entries[pickles[0]]
        if pickle.nbytes > _LARGEST_PICKLE:
            raise AmbiguousError(f"its data.pkl has {pickle.nbytes} bytes, more than {_LARGEST_PICKLE}")
        document = read_pickle(io.BytesIO(read_at(stream, locate(stream, pickle), pickle.nbytes)))
        data = f"{root}data/"
        spans = {
            name.removeprefix(data): (locate(stream, entry), entry.nbytes)
            for name, entry in entries.items()
            if name.startswith(data)
        }
    return TorchFile(path, document.value, spans)


def read_legacy(path: Path) -> TorchFile:
    """Read a file as torch wrote it before 1.6: five pickles, and the storages behind them.

    Raises:
        Exception: it is damaged, or it is another pickle.
    """
    with open_plain(path) as stream:
        head = io.BytesIO(stream.read(_LARGEST_PICKLE))
        start = tuple(read_pickle(head).value for _ in range(2))
        if start != _LEGACY_START:
            raise ValueError("it is a pickle, but not of torch")
        facts = read_pickle(head).value
        if not isinstance(facts, dict) or facts.get("little_endian") is not True:
            raise ValueError("its bytes are not little-endian")
        document, keys = read_pickle(head), read_pickle(head).value
        place = head.tell()
        spans: dict[str, tuple[int, int]] = {}
        for key in map(str, keys):
            (elements,) = struct.unpack("<Q", read_at(stream, place, 8))
            nbytes = elements * _DTYPES[document.storages[key].kind].itemsize
            spans[key] = place + 8, nbytes
            place += 8 + nbytes
    if place != path.stat().st_size or len(spans) != len(keys):
        raise ValueError("its storages do not end with the file")
    return TorchFile(path, document.value, spans)


def flatten_script(root: ScriptObject) -> dict[str, StoredTensor]:
    """Return the tensors of a TorchScript module and of the modules inside it, by their dotted names.

    Raises:
        ForbiddenError: a class has a `__setstate__`, or the modules are nested without end.
    """
    found: dict[str, StoredTensor] = {}
    waiting: list[tuple[str, ScriptObject, int]] = [("", root, 0)]
    while waiting:
        prefix, module, depth = waiting.pop()
        if not isinstance(module.state, dict):
            raise ForbiddenError(f"{module.kind} restores its weights by code (__setstate__)")
        if depth > _DEEPEST or len(found) + len(waiting) > _MOST_TENSORS:
            raise ForbiddenError(f"{module.kind} is nested without end")
        for name, value in module.state.items():
            if f"{prefix}{name}" in found:
                raise ForbiddenError(f"{module.kind} has two attributes {name}")
            if isinstance(value, ScriptObject):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
            elif isinstance(value, StoredTensor):
                found[f"{prefix}{name}"] = value
    return found
