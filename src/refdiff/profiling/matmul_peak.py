"""Peak throughput of this machine: a float32 matrix product in ONNX Runtime, measured and not looked up.

The graph is in `matmul.onnx`, y = MatMul(a, b) with 1024×1024 matrices: a device's environment has no package
that writes ONNX.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from refdiff.engines.factory import import_ort
from refdiff.errors import MissingDependencyError

SIDE = 1024
"""Side of the square matrices: 4 MiB each, with far more arithmetic than reading."""

_RUNS = 5
"""Runs of the product before a round."""

_PROVIDER = {
    "ort-cpu": "ort-cpu",
    "ort-rounded": "ort-cpu",
    "ort-cuda": "ort-cuda",
    "ort-tensorrt": "ort-cuda",
    "ort-rtx": "ort-cuda",
    "tensorrt": "ort-cuda",
    "tensorrt-rtx": "ort-cuda",
}
"""Back-end -> the back-end of ONNX Runtime that runs the product on the same processor."""


@dataclass(frozen=True, kw_only=True)
class PeakThroughput:
    """The machine's best, to which graphs are compared."""

    gflops: float | None
    """GFLOP/s of the best run; None: unknown."""
    rounds: tuple[float, ...]
    """GFLOP/s of the median run before each round: how quiet the machine was."""
    how: str
    """Description of the measurement, or the reason why there is none."""

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]], how: str) -> PeakThroughput:
        """Summarize the GFLOP/s of the runs before each round; there may be none."""
        best = max((run for runs in rounds for run in runs), default=None)
        medians = tuple(round(statistics.median(runs), 2) for runs in rounds if runs)
        return cls(gflops=None if best is None else round(best, 2), rounds=medians, how=how)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"gflops": self.gflops, "rounds": list(self.rounds), "how": self.how}


class MatrixProduct:
    """The matrix product, ready to be timed on the processor that a back-end uses.

    Args:
        backend: one of `refdiff.engines.factory.BACKENDS`, except "auto".
        threads: as in `load`.
        clock: in seconds.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed, or has no provider for that processor.
    """

    def __init__(
        self, backend: str, threads: int | None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        where = _PROVIDER[backend]
        engine = import_ort(where)
        if engine.PROVIDERS[where][0] not in engine.ort.get_available_providers():
            raise MissingDependencyError(f"no {where} here to time a matrix product in")
        with_threads = "the back-end's choice of threads" if threads is None else f"{threads} threads"
        self.how = f"a float32 product of {SIDE}×{SIDE} in {where}, {with_threads}"
        graph = resources.files("refdiff.profiling").joinpath("matmul.onnx").read_bytes()
        options = engine.session_options(threads, spinning=True)  # a peak: nothing else needs the cores
        self._session = engine.ort.InferenceSession(graph, options, providers=[engine.PROVIDERS[where]])
        values = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
        self._feeds = {name: engine.ort.OrtValue.ortvalue_from_numpy(values) for name in ("a", "b")}
        self._clock = clock
        self._run()

    def gflops(self) -> float:
        """Return the GFLOP/s of one run; a multiply-add is two operations."""
        begun = self._clock()
        self._run()
        return 2 * SIDE**3 / (self._clock() - begun) / 1e9

    def measure_round(self) -> list[float]:
        """Return the GFLOP/s of the runs before a round."""
        return [self.gflops() for _ in range(_RUNS)]

    def _run(self) -> None:
        self._session.run_with_ort_values(["y"], self._feeds)
