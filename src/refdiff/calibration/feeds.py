"""What the pipeline fed its graphs, on disk: the questions, every run of theirs, and the arrays, each once.

    feeds.json      whose feeds (model, weights), how they were made (settings), question by question the runs
    arrays/         see `array_folder`

The index is replaced after each finished question, so that a recording that was stopped goes on where it was:
what is in the index is whole. A run of `unet_taps` is one of `unet` too: it has the same inputs.
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
    first_difference,
    plain,
    write_whole,
)
from refdiff.contracts.atomic_io import is_draft
from refdiff.contracts.session import Array
from refdiff.errors import InputError

INDEX_NAME = "feeds.json"
ARRAYS_NAME = "arrays"

COUNTS_FOR: Mapping[str, tuple[str, ...]] = {"unet_taps": ("unet_taps", "unet")}
"""Graph that was run -> graphs whose feeds these are."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one graph, to be stored."""

    graph: str
    position: int
    """Which run of this graph it was, among those of its question and variant."""
    feeds: Mapping[str, Array]
    """Tensor -> integers, or float32 at half-precision values."""


def require_recording(folder: Path) -> None:
    """Whether feeds were recorded into a folder at all, as far as its names tell.

    Raises:
        InputError: they were not.
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
        """Begin a recording, or go on with one of the same model and settings.

        Args:
            folder: where it is or will be.
            model: the bundle's name.
            sources: its weights.
            settings: everything that decides what is recorded, JSON-ready.
            planned: how many questions there will be.
            overwrite: begin anew, whatever recording is there.

        Raises:
            InputError: something else is in the way, the recording there is damaged or of another model or
                other settings, or the folder cannot be written to.
        """
        _check_folder(folder)
        wanted = FeedIndex(model=model, sources=dict(sources), settings=plain(settings), planned=planned)
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
        """Open a finished recording of this model for reading.

        Args:
            folder: the store.
            model: the name of the bundle whose graphs will be fed.
            sources: its weights.

        Raises:
            InputError: there is none, it is damaged, unfinished, or of another model.
        """
        require_recording(folder)
        index = FeedIndex.read(folder / INDEX_NAME)
        _check_model(folder, index, model, sources)
        if len(index.questions) < index.planned:
            raise InputError(
                f"{folder} holds {len(index.questions)} of {index.planned} questions: it was stopped; "
                "give the same command again: refdiff calibrate"
            )
        return cls(folder, index)

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._folder

    @property
    def settings(self) -> Mapping[str, Any]:
        """How it was recorded."""
        return self._index.settings

    @property
    def finished(self) -> tuple[str, ...]:
        """Ids of the questions that are recorded."""
        return tuple(self._index.questions)

    @property
    def size_bytes(self) -> int:
        """Of the index and the arrays."""
        return (self._folder / INDEX_NAME).stat().st_size + self._arrays.size_bytes(self._index.array_names())

    def entries(self, graph: str) -> tuple[Entry, ...]:
        """Question, variant and position of each record of a graph, in the order of `records`."""
        return tuple(
            entry
            for runs in self._index.questions.values()
            for entry in runs
            if graph in COUNTS_FOR.get(entry.graph, (entry.graph,))
        )

    def records(self, graph: str) -> Records:
        """The feeds of a graph, question by question in the order they were run; none where it never ran."""
        return Records(self.entries(graph), self._arrays)

    def add(self, question: str, runs: Mapping[str, Sequence[Run]]) -> None:
        """Store a finished question: arrays first, then the index.

        Args:
            question: its id; not one of `finished`.
            runs: variant -> what was run, in order.

        Raises:
            InputError: the folder cannot be written to.
        """
        if question in self._index.questions:
            raise ValueError(f"question {question!r} is recorded already")
        entries = tuple(
            Entry(
                question=question,
                variant=variant,
                graph=run.graph,
                position=run.position,
                arrays={name: self._arrays.put(array) for name, array in run.feeds.items()},
            )
            for variant, some in runs.items()
            for run in some
        )
        self._index.questions[question] = entries
        self._write_index()

    def _write_index(self) -> None:
        write_whole(self._folder / INDEX_NAME, self._index.to_text().encode())

    def _clean(self) -> None:
        """Delete what a stopped recording left outside its index."""
        for path in self._folder.glob(f".{INDEX_NAME}.*"):
            if is_draft(path.name):
                path.unlink(missing_ok=True)
        self._arrays.keep_only(self._index.array_names())


class Records(Sequence[Mapping[str, Array]]):
    """Feeds that are read and verified when they are asked for, one record at a time.

    Neighbours share arrays (one embedding, many decoder runs): those of the last record are kept.
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
        """Tensor -> array.

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
    strangers = sorted(names - ours if INDEX_NAME in names else names)
    if strangers:
        raise InputError(
            f"{folder} is not (only) a recording of feeds: it holds {strangers[0]!r}; "
            "it is left alone, choose another place"
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
