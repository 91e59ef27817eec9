"""Configuration files next to a checkpoint, and the values in them.

In: a path, or a value from a file. Out: plain values to compute with, or one line about the file. JSON as
Python reads it has NaN, infinity and integers too large for a float: none of them is a number here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from refdiff.contracts.plain_file import read_plain
from refdiff.errors import InputError

_DEEPEST = 32
"""Most levels of a config, so that it can be processed recursively; published ones have six."""


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        InputError: it cannot be read, is nested too deeply, or holds something else.
    """
    try:
        document = json.loads(read_plain(path).decode())
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
    """Return whether a value is a number that a float can hold: no NaN, infinity or boolean."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # which NaN is not


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number above 0, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def positive(value: object, name: str, file: Path) -> float:
    """Return a setting that must be a finite number above 0.

    Raises:
        InputError: it is not.
    """
    if not is_number(value) or value <= 0:
        raise InputError(f"{file}: {name} is {value!r}, expected a finite number above 0")
    return float(value)


def positive_whole(value: object, name: str, file: Path) -> int:
    """Return a setting that must be a whole number above 0.

    Raises:
        InputError: it is not.
    """
    if not is_whole(value):
        raise InputError(f"{file}: {name} is {value!r}, expected a whole number above 0")
    return value


def section(document: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    """Return a part of a config that must be an object.

    Raises:
        InputError: it is not.
    """
    part = document.get(name)
    if not isinstance(part, Mapping):
        raise InputError(f"{file}: {name} is {part!r}, expected an object; fetch it again")
    return part


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: Exception) -> str:
    """Return an exception's message without line breaks, unprintable characters escaped."""
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


class Shaped(Protocol):
    """A tensor; only its shape is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""


@dataclass(frozen=True)
class Shapes:
    """Tensors by name; an error names the file and the tensor as it is called there."""

    file: Path
    tensors: Mapping[str, Shaped]
    written_as: Callable[[str], str] = str
    """From a tensor's name to the one in the file."""

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """Return a tensor's shape.

        Args:
            name: of the tensor.
            axes: how many it must have.

        Raises:
            InputError: it is missing, has another number of axes, or is empty.
        """
        if name not in self.tensors:
            raise self.error(name, "is missing; use a checkpoint of a known layout")
        found = tuple(self.tensors[name].shape)
        if len(found) != axes or 0 in found:
            raise self.error(
                name,
                f"has shape {list(found)}, expected {axes} axes, none of them empty; this is not a known "
                "architecture",
            )
        return found

    def count(self, prefix: str) -> int:
        """Return how many numbered children `prefix` has; a gap shows later, as a missing tensor."""
        child = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return len({match[1] for match in map(child.match, self.tensors) if match})

    def any_below(self, *prefixes: str) -> bool:
        """Return whether a name starts with one of the prefixes."""
        return any(name.startswith(prefixes) for name in self.tensors)

    def error(self, name: str, text: str) -> InputError:
        """Return an error about one tensor."""
        return InputError(f"{self.file}: tensor {self.written_as(name)} {text}")
