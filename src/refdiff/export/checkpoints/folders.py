"""Which file of a folder holds the weights, by the names that the hub's libraries write.

In: a folder. Out: the best of the files that are there: safetensors before pickles, one file before shards.
The same order as that in which files are chosen for fetching (`refdiff.export.hub.names`; a test compares).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from refdiff.errors import InputError

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
