"""The time of each layer, as TensorRT's profiler reports it; works with `tensorrt` and `tensorrt_rtx`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refdiff.contracts.session import LayerTime


class LayerLog:
    """Adds up what an execution context reports.

    Args:
        module: the TensorRT whose context it is for.
    """

    def __init__(self, module: Any) -> None:
        self._calls: dict[str, int] = {}
        self._ms: dict[str, float] = {}
        self.profiler = _make_profiler(module, self)
        """For a context's attribute of this name; kept here, because a context does not own it."""

    def add(self, name: str, ms: float) -> None:
        """A layer ran."""
        self._calls[name] = self._calls.get(name, 0) + 1
        self._ms[name] = self._ms.get(name, 0.0) + ms

    def times(self) -> Sequence[LayerTime]:
        """Of all runs so far; TensorRT does not name a layer's operator."""
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
