"""Memory that sessions hold: allocated once, grown only when a shape demands it, given back once.

A `StreamContext` is what the sessions of one factory share: CUDA, one stream, and one buffer for activations.

An output left on the device: a view of its session's buffer, refused once that moved on.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.contracts.session import Array
from refdiff.engines.trt.cuda import Cuda
from refdiff.errors import InputError

ALIGNMENT = 512
"""Sizes are rounded up to this: cudaMalloc's own alignment, and twice what TensorRT asks of activations."""


class DeviceBuffer:
    """A piece of device memory that may be replaced by a larger one.

    Args:
        cuda: the device's.
        purpose: for messages.
    """

    def __init__(self, cuda: Cuda, purpose: str) -> None:
        self._cuda = cuda
        self._purpose = purpose
        self.address = 0
        """0 while nothing is allocated."""
        self.size = 0

    def reserve(self, size: int) -> bool:
        """Hold at least `size` bytes; what was in a smaller buffer is lost.

        Returns:
            Whether the address changed.

        Raises:
            EngineError: there is not enough memory; the smaller buffer is gone as well.
        """
        if size <= self.size:
            return False
        rounded = -(-size // ALIGNMENT) * ALIGNMENT
        self.free()  # first: both at once may not fit
        self.address = self._cuda.allocate(rounded, self._purpose)
        self.size = rounded
        return True

    def free(self) -> None:
        """Give it back; calling it twice is fine."""
        address, self.address, self.size = self.address, 0, 0
        if address:
            self._cuda.free(address)


class PinnedBuffer:
    """Page-locked host memory, seen as an array; grows like `DeviceBuffer`.

    Args:
        cuda: the device's.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self._size = 0

    def array(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """The buffer as an array of this shape; valid until the next call or `free`."""
        size = nbytes(shape, dtype)
        if size > self._size:
            self.free()
            self.address = self._cuda.allocate_pinned(size)
            self._size = size
        if not size:
            return np.empty(shape, dtype)
        memory = memoryview((ctypes.c_byte * size).from_address(self.address)).cast("B")
        return np.frombuffer(memory, dtype).reshape(shape)

    def free(self) -> None:
        """Give it back; calling it twice is fine."""
        address, self.address, self._size = self.address, 0, 0
        if address:
            self._cuda.free_pinned(address)


class StreamContext:
    """What the sessions of one factory share: they run one after the other, on one stream.

    Args:
        cuda: CUDA.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream = cuda.new_stream()
        self.activations = DeviceBuffer(cuda, "activations shared by all graphs")

    def wait(self) -> None:
        """Until everything enqueued so far is done."""
        self.cuda.wait(self.stream)

    def close(self) -> None:
        """Give everything back; calling it twice is fine."""
        stream, self.stream = self.stream, 0
        try:
            self.activations.free()
        finally:
            if stream:
                self.cuda.end_stream(stream)


def nbytes(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    """Bytes of an array."""
    return math.prod(shape) * dtype.itemsize


class OutputSlot:
    """One output of a session: its device memory, its staging on the host, and how often it was written.

    Args:
        context: the session's.
        name: "graph/output", for messages.
    """

    def __init__(self, context: StreamContext, name: str) -> None:
        self.context = context
        self.name = name
        self.memory = DeviceBuffer(context.cuda, name)
        self.writes = 0
        self._staging = PinnedBuffer(context.cuda)

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> TrtArray:
        """What the last run left here."""
        return TrtArray(slot=self, written=self.writes, shape=shape, dtype=dtype)

    def start_copy(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Enqueue a copy to the host; the array is good from the stream's next wait to the next copy."""
        staged = self._staging.array(shape, dtype)
        size = nbytes(shape, dtype)
        if size:
            cuda, stream = self.context.cuda, self.context.stream
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
        self.address_on(self.slot.context)
        staged = self.slot.start_copy(self.shape, self.dtype)
        self.slot.context.wait()
        return staged.copy()

    def address_on(self, context: StreamContext) -> int:
        """Where the values are, for a session of this context.

        Raises:
            InputError: they were overwritten, given back, or are another factory's.
        """
        if self.slot.context is not context:
            raise InputError(
                f"{self.slot.name} was left on the device by sessions of another factory; use .to_host()"
            )
        if self.slot.writes != self.written:
            raise InputError(
                f"{self.slot.name} was left on the device by an earlier run, and its session has run again "
                "or was closed; use it before, or copy it with .to_host()"
            )
        return self.slot.memory.address
