"""A recording of what the pipeline feeds its graphs, on disk.

    feeds.json      model and weights, settings, and the runs of every sample
    arrays/         the arrays, each once; see `feed_files`

The index is replaced after each finished sample, so what it lists is complete, and an interrupted recording
resumes after it. A run of `unet_taps` counts as one of `unet` too: it has the same inputs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from refdiff.calibration.feed_files import (
    CURE,
    ArrayFolder,
    Entry,
    FeedIndex,
    as_json_values,
    first_difference,
    write_whole,
)
from refdiff.contracts.atomic_io import is_draft
from refdiff.contracts.session import Array
from refdiff.errors import InputError

INDEX_NAME = "feeds.json"
ARRAYS_NAME = "arrays"

COUNTS_FOR: Mapping[str, tuple[str, ...]] = {"unet_taps": ("unet_taps", "unet")}
"""Graph that was run -> graphs that its feeds count for."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one graph, to store."""

    graph: str
    position: int
    """Index of the run among those of this graph for its sample and variant."""
    feeds: Mapping[str, Array]
    """Tensor -> integers, or float32 at half-precision values."""


def require_recording(folder: Path) -> None:
    """Refuse a folder without an index of feeds.

    Raises:
        InputError: it has none.
    """
    if not (folder / INDEX_NAME).is_file():
        raise InputError(
            f"{folder} holds no recorded feeds (no {INDEX_NAME}); record some with: refdiff calibrate"
        )


class FeedStore:
    """A folder of recorded feeds; `start` it to record, `open` it to read."""

    def __init__(self, folder: Path, index: FeedIndex) -> None:
        self._folder = folder
        self._index = index
        self._arrays = ArrayFolder(folder / ARRAYS_NAME)

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        model: str,
        sources: Mapping[str, str],
        settings: Mapping[str, Any],
        planned: int,
        overwrite: bool = False,
    ) -> FeedStore:
        """Start a recording, or resume one of the same model and settings.

        Args:
            folder: the recording's folder.
            model: name of the model.
            sources: component -> sha256 of its weights.
            settings: everything that decides what is recorded, JSON-ready.
            planned: number of samples.
            overwrite: replace an existing recording.

        Raises:
            InputError: something else is in the way, the recording there is damaged or of another model or
                other settings, or the folder cannot be written to.
        """
        _check_folder(folder)
        wanted = FeedIndex(
            model=model, sources=dict(sources), settings=as_json_values(settings), planned=planned
        )
        found = None
        if (folder / INDEX_NAME).exists() and not overwrite:
            found = FeedIndex.read(folder / INDEX_NAME)
            _check_model(folder, found, model, sources)
            _check_settings(folder, found, wanted)
        store = cls(folder, found or wanted)
        if found is None:
            store._write_index()
        store._clean()
        return store

    @classmethod
    def open(cls, folder: Path, *, model: str, sources: Mapping[str, str]) -> FeedStore:
        """Open a finished recording of a model for reading.

        Args:
            folder: the recording's folder.
            model: name of the model whose graphs will be fed.
            sources: component -> sha256 of its weights.

        Raises:
            InputError: there is none, it is damaged, unfinished, or of another model.
        """
        require_recording(folder)
        index = FeedIndex.read(folder / INDEX_NAME)
        _check_model(folder, index, model, sources)
        if len(index.samples) < index.planned:
            raise InputError(
                f"{folder} holds {len(index.samples)} of {index.planned} samples: it was interrupted; "
                "repeat the same command: refdiff calibrate"
            )
        return cls(folder, index)

    @property
    def folder(self) -> Path:
        """The recording's folder."""
        return self._folder

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings it was recorded with."""
        return self._index.settings

    @property
    def finished(self) -> tuple[str, ...]:
        """Ids of the recorded samples."""
        return tuple(self._index.samples)

    @property
    def size_bytes(self) -> int:
        """Size of the index and the arrays on disk."""
        return (self._folder / INDEX_NAME).stat().st_size + self._arrays.size_bytes(self._index.array_names())

    def entries(self, graph: str) -> tuple[Entry, ...]:
        """Return sample, variant and position of each record of a graph, in the order of `records`."""
        return tuple(
            entry
            for runs in self._index.samples.values()
            for entry in runs
            if graph in COUNTS_FOR.get(entry.graph, (entry.graph,))
        )

    def records(self, graph: str) -> Records:
        """Return the feeds of a graph, sample by sample in the order of the runs; empty if it never ran."""
        return Records(self.entries(graph), self._arrays)

    def add(self, sample: str, runs: Mapping[str, Sequence[Run]]) -> None:
        """Store a finished sample: arrays first, then the index.

        Args:
            sample: its id; not one of `finished`.
            runs: variant -> what was run, in order.

        Raises:
            InputError: the folder cannot be written to.
        """
        if sample in self._index.samples:
            raise ValueError(f"sample {sample!r} is recorded already")
        entries = tuple(
            Entry(
                sample=sample,
                variant=variant,
                graph=run.graph,
                position=run.position,
                arrays={name: self._arrays.put(array) for name, array in run.feeds.items()},
            )
            for variant, some in runs.items()
            for run in some
        )
        self._index.samples[sample] = entries
        self._write_index()

    def _write_index(self) -> None:
        write_whole(self._folder / INDEX_NAME, self._index.to_text().encode())

    def _clean(self) -> None:
        """Delete files that an interrupted recording left outside its index."""
        for path in self._folder.glob(f".{INDEX_NAME}.*"):
            if is_draft(path.name):
                path.unlink(missing_ok=True)
        self._arrays.keep_only(self._index.array_names())


class Records(Sequence[Mapping[str, Array]]):
    """Feeds that are read and verified on access, one record at a time.

    The arrays of the last record are kept, since neighbours share some (one embedding, many decoder runs).
    """

    def __init__(self, entries: Sequence[Entry], arrays: ArrayFolder) -> None:
        self._entries = entries
        self._arrays = arrays
        self._last: dict[str, Array] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Array]: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Array] | Records:
        """Return tensor -> array of one record, or the records of a slice.

        Raises:
            InputError: an array is missing or damaged.
        """
        if isinstance(index, slice):
            return Records(self._entries[index], self._arrays)
        names = self._entries[index].arrays
        self._last = {
            name: self._last[name] if name in self._last else self._arrays.get(name)
            for name in names.values()
        }
        return {tensor: self._last[name] for tensor, name in names.items()}


def _check_folder(folder: Path) -> None:
    """Refuse a place that holds anything but a recording."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder; choose another place")
    ours = {INDEX_NAME, ARRAYS_NAME}
    names = {path.name for path in folder.iterdir() if not is_draft(path.name)}
    foreign = sorted(names - ours if INDEX_NAME in names else names)
    if foreign:
        raise InputError(
            f"{folder} is not (only) a recording of feeds: it holds {foreign[0]!r}; "
            "it is not modified, choose another place"
        )


def _check_model(folder: Path, index: FeedIndex, model: str, sources: Mapping[str, str]) -> None:
    if index.model == model and index.sources == dict(sources):
        return
    theirs, ours = index.model, model
    if theirs == ours:
        part = next(iter(first_difference(index.sources, sources) or ("weights",)))
        theirs, ours = (
            f"{name} with {part} {sha256[:12]}"
            for name, sha256 in (
                (theirs, index.sources.get(part, "missing")),
                (ours, sources.get(part, "missing")),
            )
        )
    raise InputError(
        f"{folder} holds feeds of {theirs}, the bundle is {ours}; "
        "take the bundle they were recorded with, or choose another place"
    )


def _check_settings(folder: Path, found: FeedIndex, wanted: FeedIndex) -> None:
    difference = first_difference(found.settings, wanted.settings) or first_difference(
        {"planned": found.planned}, {"planned": wanted.planned}
    )
    if difference is not None:
        key, *values = difference
        theirs, ours = ("{…}" if isinstance(value, Mapping) else repr(value) for value in values)
        raise InputError(
            f"{folder} was recorded with {key} {theirs}, asked for is {ours}; "
            f"ask for the same, choose another place, or {CURE}"
        )
