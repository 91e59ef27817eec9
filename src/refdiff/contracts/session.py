"""What the runtime asks of a back-end: a session per graph, named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import GraphSpec

Array = NDArray[Any]
Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


class Session(Protocol):
    """One loaded graph."""

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        ...

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; `outputs` None means all of them.

        Raises:
            InputError: a feed is missing, surplus, or of the wrong dtype or shape.
            EngineError: the back-end failed.
        """
        ...

    def close(self) -> None:
        """Free what the session holds; calling it twice is fine."""
        ...


class SessionFactory(Protocol):
    """Opens the session of a named graph, late: a graph nobody runs is never loaded."""

    def open(self, name: str) -> Session:
        """The session of graph `name`, opened on the first call and kept."""
        ...

    def close(self) -> None:
        """Close every session that was opened."""
        ...
