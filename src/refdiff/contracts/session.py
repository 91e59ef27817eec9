"""What the runtime asks of a back-end: a session per graph, named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import GraphSpec

Array = NDArray[Any]
Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


class DeviceArray(Protocol):
    """An output that stayed on the device that computed it: a feed of the next graph there.

    It is a view of its session's buffer, good until that session runs again or is closed; whoever uses it
    later is refused.
    """

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """As a host array's."""
        ...

    def to_host(self) -> Array:
        """A copy on the host, once everything before it has been computed.

        Raises:
            InputError: its session has run again or was closed.
            EngineError: the copy failed.
        """
        ...


Feed = Array | DeviceArray
"""What a session of a back-end with a device may be fed; the others take host arrays alone."""


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


@runtime_checkable
class ChainingSession(Session, Protocol):
    """A session that can take feeds from the device and leave outputs there; see `runtime.chaining`."""

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """As `Session.run`; a feed may be what another session of the same factory left on the device."""
        ...

    def run_on_device(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None
    ) -> dict[str, DeviceArray]:
        """As `run`, but nothing is copied to the host, and nobody waits for the device."""
        ...


class BatchingSession(Session, Protocol):
    """A session that says how many rows it takes at once; see `runtime.rows`."""

    @property
    def most_rows(self) -> int | None:
        """Most rows of the graph's axis b in one run; None: any number."""
        ...


Measure = Literal["runs", "layers"]
"""What sessions are opened to measure: what the device needs for a run, or for each layer of it."""


@runtime_checkable
class DeviceTimedSession(Session, Protocol):
    """A session whose device has a clock of its own."""

    def device_ms(self) -> float | None:
        """Of the last run, without copies, once it is done; None where it was not opened to measure "runs".

        Raises:
            EngineError: the device failed.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """What one layer of a graph took in all runs of its session."""

    name: str
    operator: str
    """Empty where the back-end does not say."""
    calls: int
    ms: float


@runtime_checkable
class LayeredSession(Session, Protocol):
    """A session that can say where inside a run the time went."""

    def layers(self) -> Sequence[LayerTime]:
        """Of all runs so far, in the order they first ran; empty where it was not opened to measure "layers".

        Raises:
            EngineError: the back-end did not write down what it measured.
        """
        ...


class SessionFactory(Protocol):
    """Opens the session of a named graph, late: a graph nobody runs is never loaded."""

    def open(self, name: str) -> Session:
        """The session of graph `name`, opened on the first call and kept."""
        ...

    def close(self) -> None:
        """Close every session that was opened."""
        ...
