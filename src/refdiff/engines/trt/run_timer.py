"""What the device itself needs for a run: two CUDA events around what is enqueued."""

from __future__ import annotations

from types import TracebackType

from refdiff.engines.trt.buffers import Lane


class RunTimer:
    """Used in a `with` block around the enqueuing of a run; copies outside of it are not counted.

    Args:
        lane: the session's.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._begun = lane.cuda.new_event(timing=True)
        self._ended = lane.cuda.new_event(timing=True)
        self._has_run = False

    def __enter__(self) -> None:
        self._lane.cuda.record(self._begun, self._lane.stream)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._lane.cuda.record(self._ended, self._lane.stream)
            self._has_run = True

    def elapsed_ms(self) -> float | None:
        """Of the last run, once it is done; None before the first.

        Raises:
            EngineError: the run failed on the device.
        """
        if not self._has_run:
            return None
        self._lane.cuda.wait_for(self._ended)
        return self._lane.cuda.elapsed_ms(self._begun, self._ended)

    def close(self) -> None:
        """Give the events back."""
        self._lane.cuda.end_event(self._begun)
        self._lane.cuda.end_event(self._ended)
