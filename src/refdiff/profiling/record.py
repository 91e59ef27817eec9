"""A profile as a record: what a comparison reads of the JSON document that `refdiff profile --json` prints.

In: a parsed document. Out: a `Profile`, or an error that says what is wrong with the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.errors import InputError
from refdiff.profiling.parts import Part

KIND, FORMAT = "refdiff profile", 1

LEAST_ROUNDS = 5
"""Fewer say nothing of their noise."""

ALL = "all"
"""The row of all of it."""

Figures = Mapping[str, Sequence[float]]
"""Row -> milliseconds of each round, in their order."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a comparison reads of a record."""

    name: str
    identity: Mapping[str, Any]
    """What has to be the same for two profiles to be of the same thing."""
    figures: Figures
    yardstick: float | None
    """GFLOP/s of a matrix product, the median over the rounds; None: unknown."""
    left_out: int
    """Rounds in which the machine throttled."""


def read_profile(document: Any, name: str) -> Profile:
    """What is compared of a record.

    Args:
        document: parsed JSON.
        name: of its file, for messages.

    Raises:
        InputError: it is no profile, of another format, or of too few rounds.
    """
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise InputError(f"{name} is no profile; expected what `refdiff profile BUNDLE --json` prints")
    if document.get("format") != FORMAT:
        raise InputError(
            f"{name} is a profile of format {document.get('format')!r}, expected {FORMAT}; profile again"
        )
    try:
        identity = {key: document[key] for key in ("machine", "bundle", "options")}
        rounds: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for sample in document["samples"]:
            rounds[int(sample["round"])].append(sample)
        kept = [rounds[at] for at in sorted(rounds) if not any(each["throttled"] for each in rounds[at])]
        figures = _figures([[dict(each["parts"]) for each in one] for one in kept])
        speeds = [float(speed) for speed in document["peak"]["rounds"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{name} is a damaged profile ({type(error).__name__}: {error}); profile again"
        ) from error
    if len(kept) < LEAST_ROUNDS:
        throttled = (
            f", {len(rounds) - len(kept)} of {len(rounds)} were throttled" if len(kept) < len(rounds) else ""
        )
        raise InputError(
            f"{name} has {len(kept)} rounds to compare{throttled}, expected {LEAST_ROUNDS} or more; "
            "profile again with more --runs"
        )
    return Profile(
        name=name,
        identity=identity,
        figures=figures,
        yardstick=float(np.median(speeds)) if speeds else None,
        left_out=len(rounds) - len(kept),
    )


def _figures(rounds: Sequence[Sequence[Mapping[str, float]]]) -> Figures:
    """Of all of it, of each stage of several parts, and of each part."""
    figures: dict[str, list[float]] = {}
    parts = {text for one in rounds for each in one for text in each}
    stages: dict[str, set[str]] = defaultdict(set)
    for text in parts:
        stages[Part.parse(text).stage].add(text)
    rows = {ALL: parts, **{s: p for s, p in stages.items() if len(p) > 1}, **{text: {text} for text in parts}}
    for row, summed in rows.items():
        figures[row] = [
            sum(float(each.get(text, 0.0)) for each in one for text in summed) / len(one) for one in rounds
        ]
    return figures
