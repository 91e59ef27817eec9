"""Configuration files beside a checkpoint: reading them, and the numbers in them.

In: a path, or a value that a file holds. Out: plain values that can be computed with, or one line about the
file. JSON as Python reads it has NaN, infinity and integers that no float can hold: none passes for a number
here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeGuard

from refdiff.errors import InputError

_DEEPEST = 32
"""Levels of a file of settings; published ones have six. What walks them may then recurse."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: it cannot be read, is nested beyond reason, or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON ({one_line(error)}); fetch it again") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}, expected an object; fetch it again")
    if _is_too_deep(document):
        raise InputError(
            f"{path} is nested more than {_DEEPEST} levels deep, expected settings; fetch it again"
        )
    return document


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number that a float can hold: neither NaN nor infinite, and no bool."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # which NaN is not


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number above 0, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def positive(value: object, name: str, file: Path) -> float:
    """A finite number above 0.

    Args:
        value: as the file has it.
        name: of the setting, for messages.
        file: that it stands in, for messages.

    Raises:
        InputError: it is none.
    """
    if not is_number(value) or value <= 0:
        raise InputError(f"{file}: {name} is {value!r}, expected a finite number above 0")
    return float(value)


def one_line(error: Exception) -> str:
    """What an exception says, without line breaks, and with what no terminal can print escaped."""
    text = str(error).encode("utf-8", "backslashreplace").decode("utf-8")
    return " ".join(text.split()) or type(error).__name__


def _is_too_deep(document: Collection[Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: Any) -> Collection[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
