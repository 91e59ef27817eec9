"""What every loader of this room returns: one of the stack's three models, sized but not yet in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from refdiff.contracts.spec import ClipSpec, DiffusionSpec, SamSpec
from refdiff.contracts.stack import Loader

Spec = TypeVar("Spec", DiffusionSpec, SamSpec, ClipSpec)


@dataclass(frozen=True, kw_only=True)
class Part(Generic[Spec]):
    """A model that can be loaded."""

    spec: Spec
    loaders: Mapping[str, Loader]
    """Component of the stack -> what loads it."""
    sources: Mapping[str, str]
    """Component -> sha256 of its checkpoint, or "random, seed N"."""
    vocabulary: int | None = None
    """Rows of the token table, where the model has a text tower."""
