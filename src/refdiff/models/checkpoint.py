"""Read a checkpoint file: safetensors, torch's zip and its older pickle, TorchScript archives.

The first bytes determine the format, not the name. Weights stay on disk where the format allows it
(memory-mapped), and nothing in a file is executed: pickles go through torch's weights-only unpickler,
TorchScript archives through torch's own loader, which runs no Python, and only if they have no code to run
while loading.
"""

from __future__ import annotations

import errno
import hashlib
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch

from refdiff.contracts.atomic_io import hash_file
from refdiff.errors import InputError
from refdiff.models.configs import first_line, read_json


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

_TRAINER = "module."
"""Prefix of every name after torch's data-parallel training."""


class _Ignored:
    """Stand-in for a trainer's class that old checkpoints name next to their weights; it is discarded."""


_IGNORED_CLASSES: list[Any] = [(_Ignored, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]
"""Classes named in Stable Diffusion's first .ckpt files."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, in the dtypes they were stored in; using one may read the disk."""

    path: Path
    """The file, or the index of its shards."""
    tensors: Mapping[str, torch.Tensor]
    files: tuple[Path, ...]
    """The files with the weights: the file itself, or its shards."""

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
    return Checkpoint(path, _read(path), (path,))


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
    return _read(path)


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    with _report_damage(path):
        document = _reader(path)(path)
    return _weights(document, path)


def _reader(path: Path) -> Callable[[Path], Any]:
    """Return the reader of a file's format, which its first bytes determine."""
    with path.open("rb") as stream:
        start = stream.read(9)
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size:
        return _read_safetensors
    if start.startswith(b"PK"):
        return _read_script if _is_script(path) else _read_zip
    if start.startswith(b"\x80"):
        return _read_old_pickle
    raise InputError(
        f"{path} is no checkpoint (it starts with {start[:8]!r}) or is truncated; "
        "expected safetensors, a torch .pt/.pth/.ckpt or a TorchScript archive"
    )


@contextmanager
def _report_damage(path: Path) -> Iterator[None]:
    """Turn the readers' errors into one line, and suppress their warnings about old formats."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights, and loading it could run code, or it is damaged: "
            f"{_culprit(error)}; convert it to safetensors at its source"
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


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, framework="pt") as stream:
        return {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping


def _is_script(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_script(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            # The only code of an archive that runs while loading; TorchScript has operators that write files.
            if name.endswith(".py") and b"__setstate__" in archive.read(name):
                raise InputError(
                    f"{path} holds more than weights, and loading it would run code: {name} has a "
                    "__setstate__; convert it to safetensors at its source"
                )
    return torch.jit.load(path, map_location="cpu").state_dict()


def _read_zip(path: Path) -> Any:
    with torch.serialization.safe_globals(_IGNORED_CLASSES):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _read_old_pickle(path: Path) -> Any:
    with torch.serialization.safe_globals(_IGNORED_CLASSES):
        return torch.load(path, map_location="cpu", weights_only=True)


def _weights(document: Any, path: Path) -> Mapping[str, torch.Tensor]:
    """Return the state dict in a file's content, without the trainers' wrapping."""
    for wrapper in _WRAPPERS:
        if isinstance(document, Mapping) and isinstance(document.get(wrapper), Mapping):
            document = document[wrapper]
    tensors = (
        {
            key: value
            for key, value in document.items()
            if isinstance(key, str) and isinstance(value, torch.Tensor)
        }
        if isinstance(document, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(f"{path} holds no weights: got {type(document).__name__}, expected a state dict")
    return tensors


def _culprit(error: Exception) -> str:
    """Return what the unpickler refused, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), first_line(error))
