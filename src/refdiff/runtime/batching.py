"""Run one graph on many rows, a few to a call.

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
them, and saves a CPU little (docs/speed.md)."""

TEXT_ROWS = 16
"""Texts of a text encoder's call: where their cost per row has stopped falling."""


def batch_size(session: Session, wanted: int) -> int:
    """Return how many rows a session is fed at once: `wanted`, or fewer where it takes fewer."""
    return wanted if session.max_batch is None else min(wanted, session.max_batch)


def run_batched(session: Session, feeds: Mapping[str, Array], size: int) -> dict[str, Array]:
    """Run on all rows, at most `size` at a time.

    Args:
        session: of a graph whose inputs and outputs all begin with the axis b.
        feeds: [b, …] each.
        size: from `batch_size`.

    Returns:
        Output -> [b, …].

    Raises:
        InputError: a feed does not fit.
        EngineError: the back-end failed.
    """
    count = len(next(iter(feeds.values())))
    parts = [
        session.run({name: values[start : start + size] for name, values in feeds.items()})
        for start in range(0, count, size)
    ]
    return parts[0] if len(parts) == 1 else {name: _joined(parts, name) for name in parts[0]}


def _joined(parts: list[dict[str, Array]], name: str) -> Array:
    return np.concatenate([part[name] for part in parts])
