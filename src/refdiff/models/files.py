"""Which file of a folder holds the weights, by the names that the hub's libraries write.

In: a folder. Out: the best of the files that are there: safetensors before pickles, one file before shards.
The same order as that in which files are chosen for fetching (`refdiff.models.hub.names`; a test compares).

Reading a checkpoint file: safetensors, torch's zip and its older pickle, TorchScript archives.

The format is told by the first bytes, not by the name. Weights stay on the disk where the format allows it
(memory-mapped), and nothing in a file is ever executed: pickles go through torch's weights-only unpickler,
TorchScript archives through torch's own, which knows no Python, and only if they bring no code for loading.
"""

from __future__ import annotations

import errno
import hashlib
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch

from refdiff.contracts.atomic_io import hash_file
from refdiff.errors import InputError
from refdiff.models.configs import read_json

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")

TRANSFORMERS_WEIGHTS = (*_SAFE, *_PICKLED)
"""What `save_pretrained` writes."""

FOLDER_WEIGHTS = ("open_clip_model.safetensors", *_SAFE, "open_clip_pytorch_model.bin", *_PICKLED)
"""The same and open_clip's."""


def weights_file(source: Path, names: Sequence[str], kind: str) -> Path:
    """The file of weights, or the index of its shards, that a loader is to read.

    Args:
        source: a folder; what is none is returned as it is, whether it exists or not.
        names: of weights in a folder, best first.
        kind: of model, for messages.

    Raises:
        InputError: the folder has no such file, or cannot be looked into.
    """
    with refusing_what_cannot_be_read(source):
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
def refusing_what_cannot_be_read(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals (no permission, a failing disk) into one line about `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


INDEX_SUFFIXES = (".index.json", ".index.fp16.json")
"""Of files that say which shard holds which tensor."""

_WRAPPERS = ("state_dict", "model", "module")
"""Keys under which trainers nest the weights."""

_TRAINER = "module."
"""Put before every name by torch's data-parallel training."""


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
        InputError: there is no such file, or it cannot be opened, is truncated, of no known format, without
            weights, or a pickle that wants to run code.
    """
    with refusing_what_cannot_be_read(path):
        if path.is_dir():
            raise InputError(f"checkpoint {path} is a folder, expected a file; name one in it")
        if not path.is_file():
            raise InputError(f"checkpoint {path} does not exist; name a file or folder that does")
    if path.name.endswith(INDEX_SUFFIXES):
        return _read_shards(path)
    return Checkpoint(path, _read(path), (path,))


def trainer_prefix(names: Collection[str]) -> str:
    """What data-parallel training put before all of a checkpoint's names: "module." or nothing."""
    return _TRAINER if all(name.startswith(_TRAINER) for name in names) else ""


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
    """Tensor -> the file beside the index that holds it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise InputError(
            f"{index} is not an index of shards: its weight_map is {names!r}, expected an object; "
            "fetch it again"
        )
    if not names:
        raise InputError(f"{index} names no tensors, expected a weight_map with some; fetch it again")
    for key, name in names.items():
        # A shard lies beside its index: a name that leads elsewhere could read any file of this machine.
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise InputError(f"{index} puts {key} into {name!r}, expected the name of a file beside it")
    return names


def _read_shard(path: Path, index: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(f"{index} names the shard {path.name}, which is not there; fetch it again")
    return _read(path)


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    with _refusing_damage(path):
        document = _reader(path)(path)
    return _weights(document, path)


def _reader(path: Path) -> Callable[[Path], Any]:
    """What reads a file that starts like this one."""
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
def _refusing_damage(path: Path) -> Iterator[None]:
    """Turn what the readers raise into one line, and keep their warnings about old formats to themselves."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights, and loading it could run code, or it is damaged: "
            f"{_culprit(error)}; convert it to safetensors where it came from"
        ) from error
    except OSError as error:
        # A reader that damage sends to a place outside of the file gets EINVAL.
        if error.errno in (None, errno.EINVAL):
            raise _damaged(path, error) from error
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # bytes that are wrong by chance raise anything at all out of these readers
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged or truncated ({_first_line(error)}); fetch it again")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, framework="pt") as stream:
        return {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping


def _is_script(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_script(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            # The one thing of an archive that runs while it is loaded; TorchScript has operators that write.
            if name.endswith(".py") and b"__setstate__" in archive.read(name):
                raise InputError(
                    f"{path} holds more than weights, and loading it would run code: {name} has a "
                    "__setstate__; convert it to safetensors where it came from"
                )
    return torch.jit.load(path, map_location="cpu").state_dict()


def _read_zip(path: Path) -> Any:
    with torch.serialization.safe_globals(_BYSTANDERS):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _read_old_pickle(path: Path) -> Any:
    with torch.serialization.safe_globals(_BYSTANDERS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _weights(document: Any, path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in what a file held, out of a trainer's wrapping."""
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
    """What the unpickler stumbled over, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
