"""Measure the device's time of a run by two CUDA events, and of each layer by TensorRT's profiler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from refdiff.contracts.session import LayerTime
from refdiff.engines.trt.buffers import StreamContext


class RunTimer:
    """Measures what is enqueued in a `with` block of `measure`; copies outside of it are not counted."""

    def __init__(self, context: StreamContext) -> None:
        self._context = context
        self._begun = context.cuda.new_event(timing=True)
        self._ended = context.cuda.new_event(timing=True)
        self._has_run = False

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Record the start and, unless the block fails, the end of a run."""
        self._context.cuda.record(self._begun, self._context.stream)
        yield
        self._context.cuda.record(self._ended, self._context.stream)
        self._has_run = True

    def elapsed_ms(self) -> float | None:
        """Wait for the last run and return its time in ms; None before the first run.

        Raises:
            EngineError: the run failed on the device.
        """
        if not self._has_run:
            return None
        self._context.cuda.wait_for(self._ended)
        return self._context.cuda.elapsed_ms(self._begun, self._ended)

    def close(self) -> None:
        """Free the events."""
        self._context.cuda.end_event(self._begun)
        self._context.cuda.end_event(self._ended)


class LayerLog:
    """Sums the times that an execution context reports."""

    def __init__(self, module: Any) -> None:
        self._calls: dict[str, int] = {}
        self._ms: dict[str, float] = {}
        self.profiler = _make_profiler(module, self)
        """The context's attribute of this name; kept here, because a context does not own it."""

    def add(self, name: str, ms: float) -> None:
        """Add one run of a layer."""
        self._calls[name] = self._calls.get(name, 0) + 1
        self._ms[name] = self._ms.get(name, 0.0) + ms

    def times(self) -> Sequence[LayerTime]:
        """Return the times of all runs so far; TensorRT does not name a layer's operator."""
        return tuple(
            LayerTime(name=name, operator="", calls=calls, ms=self._ms[name])
            for name, calls in self._calls.items()
        )


def _make_profiler(module: Any, log: LayerLog) -> Any:
    base: Any = module.IProfiler

    class Profiler(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            log.add(layer_name, ms)

    return Profiler()
