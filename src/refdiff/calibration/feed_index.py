"""The index of recorded feeds: a value that is read from and written to `feeds.json` (see `feeds`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refdiff.calibration.array_folder import ARRAY_NAME, CURE
from refdiff.errors import InputError

FEEDS_FORMAT = 1
"""Raised when one refdiff could no longer use what another recorded."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of one graph, as it is stored."""

    question: str
    profile: str
    graph: str
    """The one that was run."""
    position: int
    """Which run of this graph it was, among those of its question and profile."""
    arrays: Mapping[str, str]
    """Tensor -> name of its array."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without the question it stands under."""
        return {
            "profile": self.profile,
            "graph": self.graph,
            "position": self.position,
            "feeds": dict(self.arrays),
        }


@dataclass(kw_only=True)
class FeedIndex:
    """Everything but the arrays."""

    model: str
    sources: Mapping[str, str]
    """Component -> sha256 of the weights the pipeline ran with."""
    settings: Mapping[str, Any]
    planned: int
    """Questions of the finished recording."""
    questions: dict[str, tuple[Entry, ...]] = field(default_factory=dict)
    """Id of a finished question -> its runs."""

    def array_names(self) -> frozenset[str]:
        """Of all arrays that are referred to."""
        return frozenset(
            name for runs in self.questions.values() for entry in runs for name in entry.arrays.values()
        )

    def to_text(self) -> str:
        """The file's content; the same recording is the same bytes."""
        document = {
            "format": FEEDS_FORMAT,
            "model": self.model,
            "sources": dict(self.sources),
            "settings": self.settings,
            "planned": self.planned,
            "questions": [
                {"id": question, "runs": [entry.to_json() for entry in runs]}
                for question, runs in self.questions.items()
            ],
        }
        return json.dumps(document, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> FeedIndex:
        """Read what `to_text` wrote.

        Raises:
            InputError: unreadable, of another format, or not such a file.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, RecursionError, ValueError) as error:
            raise InputError(f"{path} is not readable JSON ({error}); {CURE}") from error
        if not isinstance(document, dict) or document.get("format") != FEEDS_FORMAT:
            got = document.get("format") if isinstance(document, dict) else type(document).__name__
            raise InputError(f"{path}: got format {got!r}, expected {FEEDS_FORMAT}; {CURE}")
        try:
            return cls(
                model=str(document["model"]),
                sources={str(part): str(sha256) for part, sha256 in document["sources"].items()},
                settings=dict(document["settings"]),
                planned=int(document["planned"]),
                questions={
                    str(asked["id"]): tuple(_entry(str(asked["id"]), run) for run in asked["runs"])
                    for asked in document["questions"]
                },
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not an index of feeds ({error}); {CURE}") from error


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file: tuples are lists."""
    document: dict[str, Any] = json.loads(json.dumps(settings))
    return document


def first_difference(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """The first key that differs, dots between levels, with both values; None where nothing does."""
    for key in sorted({*theirs, *ours}):
        one, other = theirs.get(key), ours.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found = first_difference(one, other, f"{prefix}{key}.")
            if found is not None:
                return found
        elif one != other:
            return f"{prefix}{key}", one, other
    return None


def _entry(question: str, run: Mapping[str, Any]) -> Entry:
    arrays = {str(tensor): str(name) for tensor, name in run["feeds"].items()}
    for name in arrays.values():
        if not ARRAY_NAME.fullmatch(name):  # also keeps paths inside the folder
            raise ValueError(f"an array is called {name!r}")
    return Entry(
        question=question,
        profile=str(run["profile"]),
        graph=str(run["graph"]),
        position=int(run["position"]),
        arrays=arrays,
    )
