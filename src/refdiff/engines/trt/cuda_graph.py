"""Replay a run as one launch of a CUDA graph instead of hundreds of kernel launches.

TensorRT ties a captured graph to its context's shapes and addresses, so only one is kept, and it is dropped
when any of them changes. TensorRT requires one plain run of a shape first; the second run is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refdiff.engines.trt.buffers import StreamContext
from refdiff.errors import EngineError


class CudaGraph:
    """The captured run of one session.

    Args:
        context: the session's.
        enabled: False never captures.
    """

    def __init__(self, context: StreamContext, *, enabled: bool) -> None:
        self._context = context
        self._enabled = enabled
        self._graph: Any = None
        self._runs = 0
        self.refusal: str | None = None
        """Reason why this graph cannot be captured; None while there is none."""

    @property
    def is_captured(self) -> bool:
        """True if the next run is a replay."""
        return self._graph is not None

    def run(self, enqueue: Callable[[], None], is_capturable: Callable[[], bool]) -> None:
        """Run once: plain, captured for the first time, or replayed.

        Raises:
            EngineError: the run failed.
        """
        if self._graph is None and self._enabled and self._runs:
            self._try_capture(enqueue, is_capturable)
        if self._graph is None:
            enqueue()
        else:
            self._context.cuda.launch(self._graph, self._context.stream)
        self._runs += 1

    def drop(self) -> None:
        """Drop the captured run, before shapes or addresses change; calling it twice is fine."""
        graph, self._graph, self._runs = self._graph, None, 0
        if graph is not None:
            self._context.wait()  # it may still be running
            self._context.cuda.end_capture(graph)

    def _try_capture(self, enqueue: Callable[[], None], is_capturable: Callable[[], bool]) -> None:
        """Capture a run; a graph that cannot be captured runs plain, its kernels launched one by one."""
        if not is_capturable():
            self._refuse("TensorRT says that it is not capturable")
            return
        try:
            self._graph = self._context.cuda.capture(self._context.stream, enqueue)
        except EngineError as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> None:
        self._enabled, self.refusal = False, reason
