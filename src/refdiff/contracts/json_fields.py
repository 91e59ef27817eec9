"""Typed readers of JSON: an error names the field, what it holds and what was expected."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from refdiff.contracts.plain_file import read_plain
from refdiff.errors import RefdiffError


def read_json(path: Path, error: type[RefdiffError], advice: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        error: what to raise.
        advice: the end of the message: what to do.

    Raises:
        RefdiffError: of type `error`; the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_plain(path).decode("utf-8"))
    except (OSError, RecursionError, ValueError) as cause:
        raise error(f"{path} is not readable JSON ({cause}); {advice}") from cause


def missing_or_wrong(error: Exception) -> str:
    """Return what an error of a document's field says, for a message."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def shown(value: object) -> str:
    """Return a value for a message: without control characters, and cut if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


_LONGEST_SHOWN = 100


def as_text(value: object, name: str) -> str:
    """Return `value` if it is a string.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)}, expected text")
    return value


def as_plain_text(value: object, name: str) -> str:
    """Return `value` if it is a short string without control characters.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST_TEXT:
        raise TypeError(
            f"{name} is {shown(value)}, expected text of at most {_LONGEST_TEXT} printable characters"
        )
    return value


_LONGEST_TEXT = 300


def as_whole(value: object, name: str, *, least: int | None = None) -> int:
    """Return `value` if it is an integer, and no boolean.

    Raises:
        TypeError: it is not, or is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise TypeError(f"{name} is {shown(value)}, expected a whole number")
    return value


def as_number(value: object, name: str) -> float:
    """Return `value` if it is an integer or a float, and no boolean.

    Raises:
        TypeError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {shown(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        number = math.inf
    if not math.isfinite(number):
        raise TypeError(f"{name} is {number}, expected a finite number")
    return number


def as_list(value: object, name: str) -> list[Any]:
    """Return `value` as a list if it is a list, or a tuple that stands for one.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} is {shown(value)}, expected a list")
    return list(value)


def as_table(value: object, name: str) -> dict[str, Any]:
    """Return `value` if it is an object: names and values.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {shown(value)}, expected an object with names")
    return value
