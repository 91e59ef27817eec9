"""One graph on many rows, a few to a call.

In: a session, and feeds whose first axis is the graph's dynamic batch. Out: its outputs, row by row the same
as if each had been fed alone, to rounding.

Axes: b = rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refdiff.contracts.session import Array, Session

UNET_ROWS = 2
"""Rows of a UNet call. Two is what `official` needs for its guided passes anyway, so many phrases take no
more memory than one; a row more takes 0.5 GiB of attention logits at SD 1.5's 512 px where nothing fuses
them, and spares a CPU little (docs/speed.md)."""

TEXT_ROWS = 16
"""Texts of a text encoder's call: where their cost per row has stopped falling."""


def rows_per_call(session: Session, *, wanted: int, safe: int) -> int:
    """How many rows a session is fed at once.

    Args:
        session: one that says what it takes, or one that does not.
        wanted: as many as are worth it.
        safe: as many as any session of the graph takes, for one that does not say.
    """
    # Not isinstance: whether a protocol's property is looked up or run depends on Python's version, and a
    # wrapper has the property where its inner session has none.
    most: int | None = getattr(session, "most_rows", safe)
    return wanted if most is None else min(wanted, most)


def run_rows(session: Session, feeds: Mapping[str, Array], step: int) -> dict[str, Array]:
    """Run on all rows, at most `step` at a time.

    Args:
        session: of a graph whose inputs and outputs all begin with the axis b.
        feeds: [b, …] each.
        step: from `rows_per_call`.

    Returns:
        Output -> [b, …].

    Raises:
        InputError: a feed does not fit.
        EngineError: the back-end failed.
    """
    count = len(next(iter(feeds.values())))
    parts = [
        session.run({name: values[start : start + step] for name, values in feeds.items()})
        for start in range(0, count, step)
    ]
    return parts[0] if len(parts) == 1 else {name: _joined(parts, name) for name in parts[0]}


def _joined(parts: list[dict[str, Array]], name: str) -> Array:
    return np.concatenate([part[name] for part in parts])
