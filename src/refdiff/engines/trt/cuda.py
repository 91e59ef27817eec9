"""The calls of CUDA's runtime that sessions need, with errors that say what failed and how to fix it.

In: cuda-python's runtime module, or a stand-in with the same calls. Addresses and streams are ints. This is
the only module that imports cuda-python, and it does so in `import_cudart`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from refdiff.errors import EngineError, MissingDependencyError

_NO_DEVICE = {"cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorStubLibrary"}
"""Errors that mean: no GPU, no driver, or a driver that is too old."""

_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"


def import_cudart() -> Any:
    """Import cuda-python's runtime module, which its releases keep in different places."""
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        if error.name not in ("cuda.bindings", "cuda.bindings.runtime"):
            raise
        return import_module("cuda.cudart")  # cuda-python before 12.8
    return runtime


class Cuda:
    """CUDA on the current device of the calling thread.

    Args:
        runtime: cuda-python's runtime module.

    Raises:
        MissingDependencyError: there is no GPU, or no driver for this CUDA.
        EngineError: the device cannot be used.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        if not self._call("cudaGetDeviceCount"):
            raise MissingDependencyError(f"CUDA sees no GPU, {_NO_DEVICE_CURE}")

    def free_memory(self) -> int:
        """Return the free bytes of the device."""
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def new_stream(self) -> int:
        """Create a stream that does not wait for the default one."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def end_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def wait(self, stream: int) -> None:
        """Wait until everything enqueued so far is done."""
        self._call("cudaStreamSynchronize", stream)

    def allocate(self, size: int, purpose: str) -> int:
        """Allocate device memory.

        Raises:
            EngineError: there is not enough; says what it is for and how much is free.
        """
        try:
            return int(self._call("cudaMalloc", size))
        except _CudaError as error:
            if error.code != _OUT_OF_MEMORY:
                raise
            self._forget_error()
            raise EngineError(
                f"no {size / 1e6:.0f} MB of device memory left for {purpose} "
                f"({self.free_memory() / 1e6:.0f} MB are free); "
                "end other programs on the device, or give a smaller --memory"
            ) from error

    def free(self, address: int) -> None:
        """Free device memory, after waiting for all work that uses it."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> int:
        """Allocate host memory that the device copies from and to directly."""
        return int(self._call("cudaMallocHost", size))

    def free_pinned(self, address: int) -> None:
        """Free pinned host memory."""
        self._call("cudaFreeHost", address)

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """Enqueue a copy from pinned host memory to the device."""
        self._copy(device, host, size, "cudaMemcpyHostToDevice", stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """Enqueue a copy from the device to pinned host memory."""
        self._copy(host, device, size, "cudaMemcpyDeviceToHost", stream)

    def copy_across(self, target: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy on the device."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice", stream)

    def new_event(self, *, timing: bool = False) -> Any:
        """Create an event; one without timing is cheaper to record and to wait for."""
        flags = self._runtime.cudaEventDefault if timing else self._runtime.cudaEventDisableTiming
        return self._call("cudaEventCreateWithFlags", flags)

    def record(self, event: Any, stream: int) -> None:
        """Record the event once everything enqueued so far is done."""
        self._call("cudaEventRecord", event, stream)

    def wait_for(self, event: Any) -> None:
        """Wait for the event; returns at once if it was never recorded."""
        self._call("cudaEventSynchronize", event)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Return the ms between two recorded events with timing."""
        return float(self._call("cudaEventElapsedTime", start, end))

    def end_event(self, event: Any) -> None:
        """Destroy an event."""
        self._call("cudaEventDestroy", event)

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Capture what `work` enqueues as a graph that can be launched; nothing is executed.

        Raises:
            EngineError: the work cannot be captured; the stream stays usable.
        """
        modes = self._runtime.cudaStreamCaptureMode
        self._call("cudaStreamBeginCapture", stream, modes.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            with self._ignoring_errors():
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))
            raise
        recorded = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", recorded, 0)
        finally:
            self._call("cudaGraphDestroy", recorded)

    def launch(self, graph: Any, stream: int) -> None:
        """Enqueue a captured graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def end_capture(self, graph: Any) -> None:
        """Destroy a captured graph."""
        self._call("cudaGraphExecDestroy", graph)

    @contextlib.contextmanager
    def _ignoring_errors(self) -> Iterator[None]:
        with contextlib.suppress(EngineError):
            yield
        self._forget_error()

    def _copy(self, target: int, source: int, size: int, kind: str, stream: int) -> None:
        kinds = self._runtime.cudaMemcpyKind
        self._call("cudaMemcpyAsync", target, source, size, getattr(kinds, kind), stream)

    def _forget_error(self) -> None:
        """Read CUDA's last error, which stays set until it is read."""
        self._runtime.cudaGetLastError()

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._runtime, name)(*arguments)
        if int(code):
            raise self._error(name, code)
        return values[0] if len(values) == 1 else tuple(values)

    def _error(self, call: str, code: Any) -> Exception:
        name = self._text("cudaGetErrorName", code)
        text = f"{self._text('cudaGetErrorString', code)} ({name} in {call})"
        if name in _NO_DEVICE:
            return MissingDependencyError(f"CUDA cannot be used here: {text}; {_NO_DEVICE_CURE}")
        return _CudaError(f"CUDA failed: {text}", name)

    def _text(self, call: str, code: Any) -> str:
        text = getattr(self._runtime, call)(code)[-1]
        return text.decode() if isinstance(text, bytes) else str(text)


_NO_DEVICE_CURE = (
    "expected an NVIDIA GPU and a driver for this CUDA: see `nvidia-smi`, update the driver, "
    "or use --backend ort-cpu"
)


class _CudaError(EngineError):
    """A failed call, with CUDA's name of the error."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code
