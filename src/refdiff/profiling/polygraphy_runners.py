"""One graph side by side in several back-ends, run by Polygraphy's runners and compared by its comparator.

In: runners that are not active yet, and feeds. Out: times by our clock around `infer`, Polygraphy's own
figure beside them, the outputs, and how far outputs are apart. Polygraphy's figure is no latency: its
maintainers say the tool is not for that (https://github.com/NVIDIA/TensorRT/issues/3260). Its runners copy
what sessions here do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
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
"""What it logs at its highest level it raises too."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What one runner made of the feeds."""

    outputs: Mapping[str, Array]
    ms: tuple[float, ...]
    """Of each run, by our clock."""
    polygraphy_ms: tuple[float, ...]
    """Of the same runs, as Polygraphy tells it."""


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two outputs of one name are apart, by Polygraphy's comparator."""

    output: str
    max_absolute: float
    mean_absolute: float
    within: bool
    """Nowhere further apart than what was allowed."""


class SessionRunner(BaseRunner):  # type: ignore[misc]
    """A session of refdiff as one of Polygraphy's runners; it is closed by whoever opened it."""

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
    """Polygraphy's OnnxrtRunner, on the provider and threads that a session of ours would have."""
    return OnnxrtRunner(
        partial(create_session, path, backend, session_options(threads)), name=f"polygraphy {backend}"
    )


def trt_runner(plan: Path, flavour: str) -> Any:
    """Polygraphy's TrtRunner of a plan of either flavour.

    Raises:
        EngineError: this process speaks the other flavour; Polygraphy chooses when it is imported.
    """
    if (flavour == "tensorrt-rtx") != bool(config.USE_TENSORRT_RTX):
        raise EngineError(
            f"Polygraphy was imported for the other TensorRT, expected {flavour}; "
            "compare in a process of its own"
        )
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(BytesFromPath(str(plan))), name=f"polygraphy {flavour}")


def run(runner: Any, feeds: Mapping[str, Array], *, runs: int, warmup: int) -> Ran:
    """Activate a runner, run it, and give back what it holds.

    Args:
        runner: not active yet.
        feeds: of every run.
        runs: that count, one or more.
        warmup: before them.

    Raises:
        EngineError: the runner failed.
    """
    ms, told, outputs = [], [], dict[str, Array]()
    with _quiet(runner.name), runner:
        for number in range(warmup + runs):
            begun = time.perf_counter()
            made = runner.infer(dict(feeds), check_inputs=False)
            taken = time.perf_counter() - begun
            if number >= warmup:
                ms.append(1e3 * taken)
                told.append(1e3 * float(runner.last_inference_time() or 0.0))
        outputs = {name: values.copy() for name, values in made.items()}  # a runner may reuse its buffers
    return Ran(outputs=outputs, ms=tuple(ms), polygraphy_ms=tuple(told))


def apart(
    first: Mapping[str, Array], second: Mapping[str, Array], allowed: Mapping[str, float]
) -> tuple[Apart, ...]:
    """Compare outputs by name.

    Args:
        first: of one runner.
        second: of another.
        allowed: output -> the largest absolute difference.
    """
    function = _compare_function()(atol=dict(allowed), rtol=0.0, check_error_stat="max", check_shapes=True)
    with _quiet("the comparator"):
        found = function(IterationResult(_contiguous(first)), IterationResult(_contiguous(second)))
    return tuple(
        Apart(
            output=name,
            max_absolute=float(getattr(result, "max_absdiff", float("inf"))),
            mean_absolute=float(getattr(result, "mean_absdiff", float("inf"))),
            within=bool(result),
        )
        for name, result in found.items()
    )


def _contiguous(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Polygraphy looks at an array's bytes."""
    return {name: np.ascontiguousarray(values) for name, values in outputs.items()}


def _compare_function() -> Callable[..., Any]:
    """Newer releases have it as a class of its own, and say so of the old way."""
    newer = getattr(comparator, "SimpleCompareFunc", None)
    return newer or comparator.CompareFunc.simple  # type: ignore[no-any-return]


@contextmanager
def _quiet(who: str) -> Iterator[None]:
    try:
        with G_LOGGER.verbosity(_SILENT):
            yield
    except PolygraphyException as error:
        raise EngineError(f"{who} failed in Polygraphy: {' '.join(str(error).split())}") from error
