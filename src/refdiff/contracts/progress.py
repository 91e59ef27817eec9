"""How long work tells its caller where it is: one short line at each step."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Told one line, without a line end."""


def silent(line: str) -> None:
    """For a caller who does not want to know."""
