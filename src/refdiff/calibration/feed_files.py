"""The files of a recording of feeds: arrays, and the index `feeds.json` (see `feeds`).

    <sha256 of the .npy file>.npy.gz

Each array is stored once: its file is named after the hash of its content, and checked against it when read.
Float32 arrays hold half-precision values, which are stored exactly in half the bytes. Compressed, an
attention mask takes a hundredth of its bytes, and a recording of the pipeline a quarter.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.contracts.atomic_io import is_draft, report_write_errors, write_file
from refdiff.contracts.json_fields import read_json
from refdiff.contracts.plain_file import read_array, read_plain
from refdiff.contracts.session import Array
from refdiff.errors import InputError

ARRAY_NAME = re.compile("[0-9a-f]{64}")

_SUFFIX = ".npy.gz"

_FAST = 1
"""gzip level: higher ones take several times as long and save a tenth."""

CURE = "record again with: refdiff calibrate … --overwrite"


class ArrayFolder:
    """A folder of arrays, by their hash.

    Args:
        path: the folder; created with the first array.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, array: Array) -> str:
        """Store an array, unless it is stored already.

        Args:
            array: float32 at half-precision values (others are rounded), or integers.

        Returns:
            The array's name, 64 hexadecimal digits.

        Raises:
            InputError: the folder cannot be written to.
        """
        kept = np.array(array, dtype=np.float16 if array.dtype == np.float32 else array.dtype, order="C")
        buffer = io.BytesIO()
        np.save(buffer, kept, allow_pickle=False)
        data = buffer.getbuffer()
        name = hashlib.sha256(data).hexdigest()
        if not self._file(name).exists():
            write_whole(self._file(name), gzip.compress(data, _FAST, mtime=0))
        return name

    def get(self, name: str) -> Array:
        """Read an array; half precision is returned as float32.

        Raises:
            InputError: the file is missing, unreadable or changed.
        """
        path = self._file(name)
        try:
            data = gzip.decompress(read_plain(path))
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is missing or damaged ({error}); {CURE}") from error
        got = hashlib.sha256(data).hexdigest()
        if got != name:
            raise InputError(f"{path} was changed: got sha256 {got[:12]}…, expected {name[:12]}…; {CURE}")
        try:
            array = read_array(data)
        except ValueError as error:
            raise InputError(f"{path} is not an array ({error}); {CURE}") from error
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def keep_only(self, names: Collection[str]) -> None:
        """Delete arrays that are not named, and drafts; other files stay."""
        for path in self._path.glob("*") if self._path.is_dir() else ():
            name = path.name.removesuffix(_SUFFIX)
            is_array = path.name.endswith(_SUFFIX) and ARRAY_NAME.fullmatch(name)
            if (is_array and name not in names) or is_draft(path.name):
                path.unlink(missing_ok=True)

    def size_bytes(self, names: Collection[str]) -> int:
        """Return the size of the named arrays on disk; a missing one counts as 0."""
        return sum(path.stat().st_size for name in names if (path := self._file(name)).exists())

    def _file(self, name: str) -> Path:
        return self._path / f"{name}{_SUFFIX}"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically; its folder is created if it is missing.

    Raises:
        InputError: the folder cannot be written to.
    """
    with report_write_errors(path, "free space or choose another place (what is recorded stays)"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)


FEEDS_FORMAT = 2
"""Increased when recordings of an earlier refdiff can no longer be used."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored run of one graph."""

    sample: str
    variant: str
    graph: str
    """The graph that was run."""
    position: int
    """Index of the run among those of this graph for its sample and variant."""
    arrays: Mapping[str, str]
    """Tensor -> name of its array."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary without the sample, which the entry is listed under."""
        return {
            "variant": self.variant,
            "graph": self.graph,
            "position": self.position,
            "feeds": dict(self.arrays),
        }


@dataclass(kw_only=True)
class FeedIndex:
    """The content of a recording except the arrays."""

    model: str
    sources: Mapping[str, str]
    """Component -> sha256 of the weights that the pipeline ran with."""
    settings: Mapping[str, Any]
    planned: int
    """Number of samples of the finished recording."""
    samples: dict[str, tuple[Entry, ...]] = field(default_factory=dict)
    """Id of a recorded sample -> its runs."""

    def array_names(self) -> frozenset[str]:
        """Return the names of all arrays in the index."""
        return frozenset(
            name for runs in self.samples.values() for entry in runs for name in entry.arrays.values()
        )

    def to_text(self) -> str:
        """Return the file's content; equal recordings give equal bytes."""
        document = {
            "format": FEEDS_FORMAT,
            "model": self.model,
            "sources": dict(self.sources),
            "settings": self.settings,
            "planned": self.planned,
            "questions": [
                {"id": sample, "runs": [entry.to_json() for entry in runs]}
                for sample, runs in self.samples.items()
            ],
        }
        return json.dumps(document, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> FeedIndex:
        """Read a file that `to_text` wrote.

        Raises:
            InputError: it cannot be read, has another format, or is not an index of feeds.
        """
        document = read_json(path, InputError, CURE)
        if not isinstance(document, dict) or document.get("format") != FEEDS_FORMAT:
            got = document.get("format") if isinstance(document, dict) else type(document).__name__
            raise InputError(f"{path}: got format {got!r}, expected {FEEDS_FORMAT}; {CURE}")
        try:
            return cls(
                model=str(document["model"]),
                sources={str(part): str(sha256) for part, sha256 in document["sources"].items()},
                settings=dict(document["settings"]),
                planned=int(document["planned"]),
                samples={
                    str(each["id"]): tuple(_read_entry(str(each["id"]), run) for run in each["runs"])
                    for each in document["questions"]
                },
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not an index of feeds ({error}); {CURE}") from error


def as_json_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they are read back from a file: tuples become lists."""
    document: dict[str, Any] = json.loads(json.dumps(settings))
    return document


def first_difference(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """Return the first key that differs, dots between levels, with both values; None if none differs."""
    for key in sorted({*theirs, *ours}):
        one, other = theirs.get(key), ours.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found = first_difference(one, other, f"{prefix}{key}.")
            if found is not None:
                return found
        elif one != other:
            return f"{prefix}{key}", one, other
    return None


def _read_entry(sample: str, run: Mapping[str, Any]) -> Entry:
    arrays = {str(tensor): str(name) for tensor, name in run["feeds"].items()}
    for name in arrays.values():
        if not ARRAY_NAME.fullmatch(name):  # also keeps paths inside the folder
            raise ValueError(f"an array has the name {name!r}")
    return Entry(
        sample=sample,
        variant=str(run["variant"]),
        graph=str(run["graph"]),
        position=int(run["position"]),
        arrays=arrays,
    )
