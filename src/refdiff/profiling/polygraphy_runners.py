"""Polygraphy's runners and comparator, imported by `compare_backends` alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy import comparator, config
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import IterationResult
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from refdiff.contracts.session import Array, Session
from refdiff.engines.ort import create_session, session_options
from refdiff.errors import EngineError

_SILENT = G_LOGGER.CRITICAL + 1
"""Above its highest level: whatever it logs there, it raises too."""


@dataclass(frozen=True, kw_only=True)
class RunnerResult:
    """Outputs and times of one runner."""

    outputs: Mapping[str, Array]
    ms: tuple[float, ...]
    """Time of each run by our clock."""
    polygraphy_ms: tuple[float, ...]
    """Time of the same runs by Polygraphy's."""


@dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """The distance of two outputs of one name, by Polygraphy's comparator."""

    output: str
    max_absolute: float
    mean_absolute: float
    within: bool
    """The largest difference is allowed."""


class SessionRunner(BaseRunner):  # type: ignore[misc]
    """A session of refdiff as one of Polygraphy's runners; its opener closes it."""

    def __init__(self, session: Session, name: str) -> None:
        super().__init__(name=name, prefix="refdiff")
        self._session = session

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """See Polygraphy's BaseRunner."""
        begun = time.perf_counter()
        outputs = self._session.run(feed_dict)
        self.inference_time = time.perf_counter() - begun
        return outputs


def ort_runner(path: Path, backend: str, threads: int | None) -> Any:
    """Return Polygraphy's OnnxrtRunner, with the provider and threads of our sessions."""
    return OnnxrtRunner(
        partial(create_session, path, backend, session_options(threads)), name=f"polygraphy {backend}"
    )


def trt_runner(plan: Path, flavour: str) -> Any:
    """Return Polygraphy's TrtRunner of a plan of either flavour.

    Raises:
        EngineError: this process uses the other flavour; Polygraphy chooses when it is imported.
    """
    if (flavour == "tensorrt-rtx") != bool(config.USE_TENSORRT_RTX):
        raise EngineError(
            f"Polygraphy was imported for the other TensorRT, expected {flavour}; "
            "compare in a process of its own"
        )
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(BytesFromPath(str(plan))), name=f"polygraphy {flavour}")


def run(runner: Any, feeds: Mapping[str, Array], *, runs: int, warmup: int) -> RunnerResult:
    """Activate a runner, run it, and deactivate it.

    Args:
        runner: not active yet.
        feeds: the same for every run.
        runs: measured runs, one or more.
        warmup: runs before them.

    Raises:
        EngineError: the runner failed.
    """
    ms, polygraphy_ms, outputs = [], [], dict[str, Array]()
    with _quiet(runner.name), runner:
        for number in range(warmup + runs):
            begun = time.perf_counter()
            made = runner.infer(dict(feeds), check_inputs=False)
            taken = time.perf_counter() - begun
            if number >= warmup:
                ms.append(1e3 * taken)
                polygraphy_ms.append(1e3 * float(runner.last_inference_time() or 0.0))
        outputs = {name: values.copy() for name, values in made.items()}  # a runner may reuse its buffers
    return RunnerResult(outputs=outputs, ms=tuple(ms), polygraphy_ms=tuple(polygraphy_ms))


def compare(
    first: Mapping[str, Array], second: Mapping[str, Array], allowed: Mapping[str, float]
) -> tuple[OutputDifference, ...]:
    """Compare two runners' outputs by name.

    Args:
        first: outputs of one runner.
        second: outputs of the other.
        allowed: output -> the largest absolute difference.
    """
    # Newer releases have the function as a class, and warn about the older way.
    make = getattr(comparator, "SimpleCompareFunc", None) or comparator.CompareFunc.simple
    function = make(atol=dict(allowed), rtol=0.0, check_error_stat="max", check_shapes=True)
    with _quiet("the comparator"):
        found = function(IterationResult(_contiguous(first)), IterationResult(_contiguous(second)))
    return tuple(
        OutputDifference(
            output=name,
            max_absolute=float(getattr(result, "max_absdiff", float("inf"))),
            mean_absolute=float(getattr(result, "mean_absdiff", float("inf"))),
            within=bool(result),
        )
        for name, result in found.items()
    )


def _contiguous(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return arrays whose bytes Polygraphy can read."""
    return {name: np.ascontiguousarray(values) for name, values in outputs.items()}


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    try:
        with G_LOGGER.verbosity(_SILENT):
            yield
    except PolygraphyException as error:
        raise EngineError(f"{name} failed in Polygraphy: {' '.join(str(error).split())}") from error
