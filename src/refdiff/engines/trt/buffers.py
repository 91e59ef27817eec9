"""Device and pinned memory of sessions, and their outputs on the device.

Buffers are allocated once and grow only when a shape requires it. The sessions of one factory share a
`StreamContext`: CUDA, one stream, and one buffer for activations. A `TrtArray` is a view of a session's
output buffer, invalid once that session runs again.
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
"""Sizes are rounded up to this: cudaMalloc's alignment, and twice what TensorRT requires of activations."""


class DeviceBuffer:
    """Device memory that may be replaced by a larger block; messages name its `purpose`."""

    def __init__(self, cuda: Cuda, purpose: str) -> None:
        self._cuda = cuda
        self._purpose = purpose
        self.address = 0
        """0 while nothing is allocated."""
        self.size = 0

    def reserve(self, size: int) -> None:
        """Allocate at least `size` bytes; the content of a smaller buffer is lost.

        Raises:
            EngineError: there is not enough memory; the smaller buffer is freed, too.
        """
        if size <= self.size:
            return
        rounded = -(-size // ALIGNMENT) * ALIGNMENT
        self.free()  # first: both at once may not fit
        self.address = self._cuda.allocate(rounded, self._purpose)
        self.size = rounded

    def free(self) -> None:
        """Free it; calling it twice is fine."""
        address, self.address, self.size = self.address, 0, 0
        if address:
            self._cuda.free(address)


class PinnedBuffer:
    """Page-locked host memory as an array; grows like `DeviceBuffer`."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self._size = 0

    def array(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Return the buffer as an array of this shape, valid until the next call or `free`."""
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
        """Free it; calling it twice is fine."""
        address, self.address, self._size = self.address, 0, 0
        if address:
            self._cuda.free_pinned(address)


class StreamContext:
    """CUDA, a stream and an activation buffer that the sessions of one factory share."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream = cuda.new_stream()
        self.activations = DeviceBuffer(cuda, "activations shared by all graphs")

    def wait(self) -> None:
        """Wait until everything enqueued so far is done."""
        self.cuda.wait(self.stream)

    def close(self) -> None:
        """Free everything; calling it twice is fine."""
        stream, self.stream = self.stream, 0
        try:
            self.activations.free()
        finally:
            if stream:
                self.cuda.end_stream(stream)


def nbytes(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    """Return the bytes of an array."""
    return math.prod(shape) * dtype.itemsize


class OutputSlot:
    """One output of a session: device memory, staging on the host, and how often it was written."""

    def __init__(self, context: StreamContext, name: str) -> None:
        self.context = context
        self.name = name
        self.memory = DeviceBuffer(context.cuda, name)
        self.writes = 0
        self._staging = PinnedBuffer(context.cuda)

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> TrtArray:
        """Return a view of the last run's output."""
        return TrtArray(slot=self, written=self.writes, shape=shape, dtype=dtype)

    def start_copy(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Enqueue a copy to the host; the array is valid from the stream's next wait to the next copy."""
        staged = self._staging.array(shape, dtype)
        size = nbytes(shape, dtype)
        if size:
            cuda, stream = self.context.cuda, self.context.stream
            cuda.copy_out(self._staging.address, self.memory.address, size, stream)
        return staged

    def free(self) -> None:
        """Free the memory; views become invalid."""
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
        """Return the address of the values, for a session of this context.

        Raises:
            InputError: they were overwritten or freed, or belong to another factory.
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
