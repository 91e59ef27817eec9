"""Progress reports of long work: a short line at each step."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Receives a line of text without a line end."""


def silent(line: str) -> None:
    """Ignore the line."""
