"""An output left on the device: a view of its session's buffer, refused once that moved on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.contracts.session import Array
from refdiff.engines.trt.buffers import DeviceBuffer, Lane, PinnedBuffer, nbytes
from refdiff.errors import InputError


class OutputSlot:
    """One output of a session: its device memory, its staging on the host, and how often it was written.

    Args:
        lane: the session's.
        name: "graph/output", for messages.
    """

    def __init__(self, lane: Lane, name: str) -> None:
        self.lane = lane
        self.name = name
        self.memory = DeviceBuffer(lane.cuda, name)
        self.writes = 0
        self._staging = PinnedBuffer(lane.cuda)

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> TrtArray:
        """What the last run left here."""
        return TrtArray(slot=self, written=self.writes, shape=shape, dtype=dtype)

    def start_copy(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Enqueue a copy to the host; the array is good from the stream's next wait to the next copy."""
        staged = self._staging.array(shape, dtype)
        size = nbytes(shape, dtype)
        if size:
            cuda, stream = self.lane.cuda, self.lane.stream
            cuda.copy_out(self._staging.address, self.memory.address, size, stream)
        return staged

    def free(self) -> None:
        """Give the memory back; views are refused from now on."""
        self.writes += 1
        self.memory.free()
        self._staging.free()


@dataclass(frozen=True, kw_only=True)
class TrtArray:
    """The `DeviceArray` of TensorRT sessions."""

    slot: OutputSlot
    written: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def to_host(self) -> Array:
        """See `refdiff.contracts.session.DeviceArray`."""
        self.address_on(self.slot.lane)
        staged = self.slot.start_copy(self.shape, self.dtype)
        self.slot.lane.wait()
        return staged.copy()

    def address_on(self, lane: Lane) -> int:
        """Where the values are, for a session of this lane.

        Raises:
            InputError: they were overwritten, given back, or are another factory's.
        """
        if self.slot.lane is not lane:
            raise InputError(
                f"{self.slot.name} was left on the device by sessions of another factory; use .to_host()"
            )
        if self.slot.writes != self.written:
            raise InputError(
                f"{self.slot.name} was left on the device by an earlier run, and its session has run again "
                "or was closed; use it before, or copy it with .to_host()"
            )
        return self.slot.memory.address
