"""Shapes of a checkpoint's tensors, from which a model's sizes are inferred."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from refdiff.errors import InputError


class Shaped(Protocol):
    """A tensor, of which only the shape is read."""

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
