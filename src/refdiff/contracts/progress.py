"""Progress reports of long work: a short line at each step."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Receives a line of text without a line end; a `Step` where the work is counted."""


class Step(str):
    """A line of text that also states how much of the work is done.

    Args:
        text: the line.
        done: steps that are finished.
        total: steps in all, of the same unit.
        unit: what is counted; another unit or total starts another count.
    """

    done: float
    total: float
    unit: str

    def __new__(cls, text: str, *, done: float, total: float, unit: str) -> Step:
        """Return the line with its count."""
        line = super().__new__(cls, text)
        line.done, line.total, line.unit = done, total, unit
        return line


def silent(line: str) -> None:
    """Ignore the line."""
