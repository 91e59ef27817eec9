"""Reading a checkpoint file: safetensors, torch's zip and its older pickle, TorchScript archives.

The format is told by the first bytes, not by the name. Weights stay on the disk where the format allows it
(memory-mapped), and nothing in a file is ever executed: pickles go through torch's weights-only unpickler,
TorchScript archives through torch's own, which knows no Python.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch

from refdiff.contracts.bundle_draft import hash_file
from refdiff.errors import InputError

INDEX_SUFFIX = ".index.json"
"""Of a file that says which shard holds which tensor."""

_WRAPPERS = ("state_dict", "model", "module")
"""Keys under which trainers nest the weights."""


class _Bystander:
    """Stands for a trainer's class that old checkpoints name beside their weights; nothing of it is kept."""


_BYSTANDERS: list[Any] = [(_Bystander, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]
"""Named in Stable Diffusion's first .ckpt files."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors, in the dtype they were stored in; reading one may read the disk."""

    path: Path
    """The file, or the index of its shards."""
    tensors: Mapping[str, torch.Tensor]
    files: tuple[Path, ...]
    """Where the weights lie: the file itself, or its shards."""

    @cached_property
    def sha256(self) -> str:
        """Of the file; of the shards' hashes, where there are several."""
        hashes = [hash_file(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint file, or the shards an index names.

    Raises:
        InputError: there is no such file, or it is truncated, of no known format, without weights, or a
            pickle that wants to run code.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist; name a file or folder that does")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    return Checkpoint(path, _read(path), (path,))


def _read_shards(index: Path) -> Checkpoint:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = tuple(index.parent / name for name in sorted(set(names.values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is not an index of shards ({error}); fetch it again") from error
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        tensors |= read_checkpoint(shard).tensors
    missing = next((key for key in names if key not in tensors), None)
    if missing is not None:
        raise InputError(f"{index} names {missing}, which {names[missing]} does not hold; fetch it again")
    return Checkpoint(index, tensors, shards)


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    with path.open("rb") as stream:
        start = stream.read(9)
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size:
        return _read_safetensors(path)
    if start.startswith(b"PK"):
        return _read_script(path) if _is_script(path) else _read_pickle(path, mapped=True)
    if start.startswith(b"\x80"):
        return _read_pickle(path, mapped=False)
    raise InputError(
        f"{path} is no checkpoint (it starts with {start[:8]!r}) or is truncated; "
        "expected safetensors, a torch .pt/.pth/.ckpt or a TorchScript archive"
    )


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            return {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged or truncated ({error}); fetch it again") from error


def _is_script(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is damaged or truncated ({error}); fetch it again") from error


def _read_script(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch wants nobody to write these any more
            tensors: Mapping[str, torch.Tensor] = torch.jit.load(path, map_location="cpu").state_dict()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is no readable TorchScript archive: {_first_line(error)}") from error
    return tensors


def _read_pickle(path: Path, *, mapped: bool) -> Mapping[str, torch.Tensor]:
    try:
        with torch.serialization.safe_globals(_BYSTANDERS):
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights, and loading it could run code: {_culprit(error)}; "
            "convert it to safetensors where it came from"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged or truncated ({_first_line(error)}); fetch it again") from error
    return _weights(document, path)


def _weights(document: Any, path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in what a pickle held, out of a trainer's wrapping."""
    for wrapper in _WRAPPERS:
        if isinstance(document, Mapping) and isinstance(document.get(wrapper), Mapping):
            document = document[wrapper]
    tensors = (
        {key: value for key, value in document.items() if isinstance(value, torch.Tensor)}
        if isinstance(document, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(f"{path} holds no weights: got {type(document).__name__}, expected a state dict")
    return tensors


def _culprit(error: Exception) -> str:
    """What the unpickler stumbled over, in one line."""
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[-1])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
