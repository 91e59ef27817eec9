"""An in-memory stand-in for the calls of cuda-python's runtime that refdiff makes.

Device memory is host memory at real addresses. Work is enqueued and done only at the next wait, so that a
forgotten wait is seen; memory that was freed, or was never allocated, is refused.
"""

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace

Work = Callable[[], None]


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


class FakeCuda:
    """As the module `cuda.bindings.runtime`."""

    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out", cudaMemcpyDeviceToDevice="across"
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1
    cudaEventDefault = 0
    cudaEventDisableTiming = 2

    def __init__(self, *, total: int = 1 << 30, devices: int = 1) -> None:
        self.total = total
        self.devices = devices
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.pinned: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.queue: list[Work] = []
        self.streams: set[int] = set()
        self.events: set[int] = set()
        self.graphs: dict[int, list[Work]] = {}
        self.capturing: list[Work] | None = None
        self.fail: dict[str, Error] = {}
        self.calls: list[str] = []
        self.elapsed_ms = 1.5
        self._next = 1000

    @property
    def used(self) -> int:
        return sum(map(len, self.memory.values()))

    @property
    def is_clean(self) -> bool:
        """Everything that was taken was given back."""
        return not (self.memory or self.pinned or self.streams or self.events or self.graphs)

    def count(self, call: str) -> int:
        return self.calls.count(call)

    def enqueue(self, work: Work) -> None:
        (self.queue if self.capturing is None else self.capturing).append(work)

    def check(self, address: int, size: int) -> None:
        """Refuse addresses outside what is allocated."""
        for start, block in (*self.memory.items(), *self.pinned.items()):
            if start <= address and address + size <= start + len(block):
                return
        raise AssertionError(f"{size} bytes at {address} are not allocated")

    def cudaGetDeviceCount(self):
        return self._said("cudaGetDeviceCount", self.devices)

    def cudaGetErrorName(self, code):
        return Error.cudaSuccess, code.name.encode()

    def cudaGetErrorString(self, code):
        return Error.cudaSuccess, b"what CUDA says"

    def cudaGetLastError(self):
        return (Error.cudaSuccess,)

    def cudaMemGetInfo(self):
        return self._said("cudaMemGetInfo", self.total - self.used, self.total)

    def cudaMalloc(self, size):
        if size > self.total - self.used:
            return Error.cudaErrorMemoryAllocation, None
        return self._take("cudaMalloc", self.memory, size)

    def cudaMallocHost(self, size):
        return self._take("cudaMallocHost", self.pinned, size)

    def cudaFree(self, address):
        self._drain()
        del self.memory[address]
        return self._said("cudaFree")

    def cudaFreeHost(self, address):
        self._drain()
        del self.pinned[address]
        return self._said("cudaFreeHost")

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert stream in self.streams

        def copy() -> None:
            self.check(target, size)
            self.check(source, size)
            ctypes.memmove(target, source, size)

        self.enqueue(copy)
        return self._said(f"copy {kind}")

    def cudaStreamCreateWithFlags(self, flags):
        return self._said("cudaStreamCreateWithFlags", self._handle(self.streams))

    def cudaStreamDestroy(self, stream):
        self.streams.remove(stream)
        return self._said("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream):
        assert stream in self.streams
        self._drain()
        return self._said("cudaStreamSynchronize")

    def cudaEventCreateWithFlags(self, flags):
        return self._said("cudaEventCreateWithFlags", self._handle(self.events))

    def cudaEventRecord(self, event, stream):
        assert event in self.events
        return self._said("cudaEventRecord")

    def cudaEventSynchronize(self, event):
        assert event in self.events
        self._drain()
        return self._said("cudaEventSynchronize")

    def cudaEventElapsedTime(self, start, end):
        return self._said("cudaEventElapsedTime", self.elapsed_ms)

    def cudaEventDestroy(self, event):
        self.events.remove(event)
        return self._said("cudaEventDestroy")

    def cudaStreamBeginCapture(self, stream, mode):
        self.capturing = []
        return self._said("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream):
        recorded, self.capturing = self.capturing, None
        return self._said("cudaStreamEndCapture", recorded)

    def cudaGraphInstantiate(self, recorded, flags):
        self._next += 1
        self.graphs[self._next] = recorded
        return self._said("cudaGraphInstantiate", self._next)

    def cudaGraphDestroy(self, recorded):
        return self._said("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graph):
        del self.graphs[graph]
        return self._said("cudaGraphExecDestroy")

    def cudaGraphLaunch(self, graph, stream):
        for work in self.graphs[graph]:
            self.enqueue(work)
        return self._said("cudaGraphLaunch")

    def _drain(self) -> None:
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def _take(self, call, pool, size):
        answer = self._said(call)
        if answer[0]:
            return *answer, None
        block = ctypes.create_string_buffer(max(size, 1))
        pool[ctypes.addressof(block)] = block
        return Error.cudaSuccess, ctypes.addressof(block)

    def _handle(self, pool: set[int]) -> int:
        self._next += 1
        pool.add(self._next)
        return self._next

    def _said(self, call, *values):
        self.calls.append(call)
        code = self.fail.get(call, Error.cudaSuccess)
        return (code, *values) if not code else (code, *(None for _ in values))
