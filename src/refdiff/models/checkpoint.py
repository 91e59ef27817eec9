"""Read a checkpoint file: safetensors, torch's zip and its older pickle, TorchScript archives.

The first bytes determine the format, not the name. Weights stay on disk where the format allows it
(memory-mapped), and nothing in a file is executed: pickles are read as data (`pickled`), and the code of
TorchScript archives is not read.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.plain_file import open_plain
from refdiff.errors import InputError
from refdiff.models.configs import first_line, read_json
from refdiff.models.pickled import ForbiddenError, Inert, ScriptObject, StoredTensor
from refdiff.models.torch_files import TorchFile, flatten_script, read_archive, read_legacy
from refdiff.models.zip_entries import AmbiguousError


def find_weights(source: Path, names: Sequence[str], kind: str) -> Path:
    """Return the weight file, or the index of its shards, that a loader has to read.

    Args:
        source: a folder; any other path is returned unchanged, whether it exists or not.
        names: of weight files, preferred first.
        kind: of model, for messages.

    Raises:
        InputError: the folder has no such file, or cannot be read.
    """
    with report_read_errors(source):
        if not source.is_dir():
            return source
        found = next((source / name for name in names if (source / name).is_file()), None)
    if found is None:
        raise InputError(
            f"folder {source} holds no {kind} weights, expected one of {', '.join(names)}; "
            "name a file of weights"
        )
    return found


@contextmanager
def report_read_errors(path: Path) -> Iterator[None]:
    """Turn an OSError (no permission, a failing disk) into one line about `path`.

    Raises:
        InputError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


INDEX_SUFFIXES = (".index.json", ".index.fp16.json")
"""Suffixes of files that state which shard holds which tensor."""

_WRAPPERS = ("state_dict", "model", "module")
"""Keys under which trainers nest the weights."""

_SHOWN_KEYS = 8
"""Keys that a message lists."""

_TRAINER = "module."
"""Prefix of every name after torch's data-parallel training."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, in the dtypes they were stored in; using one may read the disk."""

    path: Path
    """The file, or the index of its shards."""
    tensors: Mapping[str, torch.Tensor]
    files: tuple[Path, ...]
    """The files with the weights: the file itself, or its shards."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the header of a safetensors file says about the model."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the file, or of its shards' hashes if there are several."""
        hashes = [hash_file(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint file, or the shards an index names.

    Raises:
        InputError: there is no such file, or it cannot be opened, is truncated, has an unknown format, has no
            weights, or is a pickle that would run code.
    """
    with report_read_errors(path):
        if path.is_dir():
            raise InputError(f"checkpoint {path} is a folder, expected a file; name one in it")
        if not path.is_file():
            raise InputError(f"checkpoint {path} does not exist; name a file or folder that does")
    if path.name.endswith(INDEX_SUFFIXES):
        return _read_shards(path)
    tensors, metadata = _read(path)
    return Checkpoint(path, tensors, (path,), metadata)


def split_trainer_prefix(tensors: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """Split off the prefix that data-parallel training adds to all names.

    Returns:
        The prefix, "module." or "", and the tensors by their names without it.
    """
    prefix = _TRAINER if all(name.startswith(_TRAINER) for name in tensors) else ""
    return prefix, {name[len(prefix) :]: tensor for name, tensor in tensors.items()}


def _read_shards(index: Path) -> Checkpoint:
    names = _shard_names(index)
    shards = {name: index.parent / name for name in sorted(set(names.values()))}
    opened = {name: _read_shard(path, index) for name, path in shards.items()}
    missing = next((key for key, name in names.items() if key not in opened[name]), None)
    if missing is not None:
        raise InputError(f"{index} names {missing}, which {names[missing]} does not hold; fetch it again")
    unnamed = next((key for name in opened for key in opened[name] if names.get(key) != name), None)
    if unnamed is not None:
        raise InputError(f"{index} does not name {unnamed}, which one of its shards holds; fetch it again")
    tensors = {key: opened[name][key] for key, name in names.items()}
    return Checkpoint(index, tensors, tuple(shards.values()))


def _shard_names(index: Path) -> dict[str, str]:
    """Read the index: tensor -> name of the shard that holds it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise InputError(
            f"{index} is not an index of shards: its weight_map is {names!r}, expected an object; "
            "fetch it again"
        )
    if not names:
        raise InputError(f"{index} names no tensors, expected a weight_map with some; fetch it again")
    for key, name in names.items():
        # A shard is in its index's folder: another name could read any file of this machine.
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise InputError(f"{index} puts {key} into {name!r}, expected the name of a file next to it")
    return names


def _read_shard(path: Path, index: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(f"{index} names the shard {path.name}, which is not there; fetch it again")
    return _read(path)[0]


_Content = tuple[Mapping[str, torch.Tensor], Mapping[str, str]]
"""Tensors and metadata."""


def _read(path: Path) -> _Content:
    with _report_damage(path):
        tensors, metadata = _reader(path)(path)
    _refuse_quantized(tensors, path)
    return tensors, metadata


def _reader(path: Path) -> Callable[[Path], _Content]:
    """Return the reader of a file's format, which its first bytes determine."""
    with open_plain(path) as stream:
        start = stream.read(9)
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size:
        return _read_safetensors
    if start.startswith(b"PK"):
        return lambda path: (_weights(read_archive(path)), {})
    if start.startswith(b"\x80"):
        return lambda path: (_weights(read_legacy(path)), {})
    other = next(
        (f": it is {what}" for prefix, what in _OTHER_FORMATS.items() if start.startswith(prefix)), ""
    )
    raise InputError(
        f"{path} is no checkpoint (it starts with {start[:8]!r}{other}) or is truncated; "
        "expected safetensors, a torch .pt/.pth/.ckpt or a TorchScript archive"
    )


_OTHER_FORMATS = {
    b"GGUF": "a GGUF file, whose weights are quantized",
    b"version ": "a pointer of Git LFS, not the file; fetch it with git lfs pull",
    b"<": "a web page, not the file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x08": "perhaps an ONNX model",
}
"""First bytes -> format."""

_QUANTIZED = (
    ".absmax",
    ".quant_map",
    ".SCB",
    ".qweight",
    ".qzeros",
    ".weight_scale",
    ".scale_weight",
    "scaled_fp8",
)
"""End of the names of tensors with which bitsandbytes, GPTQ, AWQ and the makers of fp8 files store scales."""


def _refuse_quantized(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    name = next((name for name in tensors if name.endswith(_QUANTIZED) or ".quant_state." in name), None)
    if name is not None:
        raise InputError(
            f"{path}: tensor {name} belongs to quantized weights (bitsandbytes, GPTQ, AWQ or fp8), expected "
            "float32, float16 or bfloat16; use a checkpoint that is not quantized"
        )


@contextmanager
def _report_damage(path: Path) -> Iterator[None]:
    """Turn the readers' errors into one line."""
    try:
        yield
    except InputError:
        raise
    except ForbiddenError as error:
        raise InputError(
            f"{path} holds more than weights, and loading it could run code, or it is damaged: "
            f"{first_line(error)}; convert it to safetensors at its source"
        ) from error
    except AmbiguousError as error:
        raise InputError(
            f"{path} is damaged, truncated, or made to deceive: {first_line(error)}; fetch it again, "
            "and distrust its source if that does not help"
        ) from error
    except OSError as error:
        # EINVAL: damage sent the reader to an offset outside the file.
        if error.errno in (None, errno.EINVAL):
            raise _damaged(path, error) from error
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # random bytes make the readers raise anything
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged or truncated ({first_line(error)}); fetch it again")


def _read_safetensors(path: Path) -> _Content:
    with safetensors.safe_open(path, framework="pt") as stream:
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
        metadata = stream.metadata() or {}
    if not tensors:
        raise InputError(f"{path} holds no weights: its header names no tensors; fetch it again")
    return tensors, metadata


def _weights(file: TorchFile) -> Mapping[str, torch.Tensor]:
    """Return the state dict in a file's document, without the trainers' wrapping."""
    document = file.document
    if isinstance(document, ScriptObject):
        document = flatten_script(document)
    for wrapper in _WRAPPERS:
        if isinstance(document, dict) and isinstance(document.get(wrapper), dict):
            document = document[wrapper]
    entries = document if isinstance(document, dict) else {}
    odd = next((key for key, value in entries.items() if _is_odd_tensor(value)), None)
    if odd is not None:
        raise InputError(
            f"{file.path}: tensor {odd} is stored by {entries[odd].kind}, expected a dense tensor that is "
            "not quantized; save it with to_dense()"
        )
    stored = {
        key: value
        for key, value in entries.items()
        if isinstance(key, str) and isinstance(value, StoredTensor)
    }
    if not stored:
        raise InputError(f"{file.path} holds no weights where they are expected: {_describe(document)}")
    return file.tensors(stored)


def _is_odd_tensor(value: object) -> bool:
    return isinstance(value, Inert) and value.kind.startswith("torch._utils._rebuild_")


def _describe(document: Any) -> str:
    """Return what a document without weights holds, and what to do."""
    wanted = f"expected a state dict, alone or under one of the keys {', '.join(_WRAPPERS)}"
    if not isinstance(document, dict):
        return f"got a {type(document).__name__}, {wanted}; use a checkpoint of a known layout"
    shown = [f"{key!r} ({_kind(value)})" for key, value in list(document.items())[:_SHOWN_KEYS]]
    more = f" and {len(document) - len(shown)} more" if len(document) > len(shown) else ""
    return (
        f"its keys are {', '.join(shown) or 'none'}{more}, {wanted}; save the part with the weights alone, "
        "as a file of its own"
    )


def _kind(value: object) -> str:
    if not isinstance(value, dict):
        return type(value).__name__
    tensors = sum(isinstance(item, StoredTensor) for item in value.values())
    return f"{tensors} tensors" if tensors else f"{len(value)} entries"
