"""Run a bundle's graphs in every available back-end, on the golden feeds, and compare times and outputs.

Times are by our clock around each runner. Outputs are compared by Polygraphy's comparator, with the committed
tolerance of the graph as the largest allowed difference. Polygraphy's own figure is not a latency: its
maintainers say that the tool is not for that (https://github.com/NVIDIA/TensorRT/issues/3260), and its
runners copy what our sessions do not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.accuracy.tolerances import graph_tolerance
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.optional import install_line
from refdiff.contracts.parity import select_recorded
from refdiff.contracts.progress import Progress
from refdiff.contracts.session import Array
from refdiff.engines.factory import BackendSessions, has_driver, import_ort
from refdiff.engines.trt.device import find_device
from refdiff.engines.trt.flavour import load_flavour
from refdiff.engines.trt.open import TENSORRT
from refdiff.engines.trt.plans import find_plans, has_plans
from refdiff.errors import EngineError, MissingDependencyError
from refdiff.profiling.spans import Percentiles

if TYPE_CHECKING:
    from refdiff.profiling.polygraphy_runners import OutputDifference, RunnerResult

_NEEDED = {"polygraphy": "profile", "onnxruntime": "cpu"}
"""Package -> the extra that brings it."""

_RTX_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"


@dataclass(frozen=True, kw_only=True)
class BackendTiming:
    """One graph in one runner."""

    name: str
    ms: Percentiles
    """By our clock, around the runner."""
    polygraphy_ms: float
    """Polygraphy's median figure for a run; not a latency."""
    from_golden: tuple[OutputDifference, ...]
    """Compared with torch's recorded outputs."""
    from_first: tuple[OutputDifference, ...]
    """Compared with the first runner's outputs; empty for the first."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "name": self.name,
            "ms": self.ms.to_json(),
            "polygraphy_ms": round(self.polygraphy_ms, 4),
            "from_golden": [_difference_json(each) for each in self.from_golden],
            "from_first": [_difference_json(each) for each in self.from_first],
        }


@dataclass(frozen=True, kw_only=True)
class BackendComparison:
    """One graph in all runners."""

    graph: str
    timings: tuple[BackendTiming, ...]
    failures: Mapping[str, str]
    """Runner -> why it could not run."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "graph": self.graph,
            "contenders": [each.to_json() for each in self.timings],
            "failures": dict(self.failures),
        }


def compare_backends(
    bundle: Bundle,
    sessions: BackendSessions,
    *,
    threads: int | None,
    runs: int,
    warmup: int,
    progress: Progress,
) -> tuple[BackendComparison, ...]:
    """Run every graph in every available back-end, one runner after the other.

    Args:
        bundle: an opened one.
        sessions: the first runner of every graph; left open.
        threads: of the other runners.
        runs: measured runs of each.
        warmup: runs before them.
        progress: called with one line per graph.

    Raises:
        MissingDependencyError: Polygraphy is not installed.
        EngineError: the first runner failed.
    """
    flavour = sessions.backend if sessions.backend in TENSORRT else None
    flavour = flavour or next((name for name in TENSORRT if has_plans(bundle, name)), None)
    polygraphy = load_polygraphy(flavour)
    plans, refused = _plans(bundle, flavour)
    compared = []
    for graph, (feeds, recorded) in bundle.golden().items():
        progress(f"back-ends: {graph}")
        first = polygraphy.SessionRunner(sessions.open(graph), sessions.backend)
        results = {sessions.backend: polygraphy.run(first, feeds, runs=runs, warmup=warmup)}
        failures: dict[str, str] = {}
        others = {
            f"polygraphy {backend}": partial(
                polygraphy.ort_runner, bundle.graph_path(graph), backend, threads
            )
            for backend in _ort_backends()
        }
        if graph in plans:
            others[f"polygraphy {flavour}"] = partial(polygraphy.trt_runner, plans[graph], flavour)
        elif graph in refused:
            failures[f"polygraphy {flavour}"] = refused[graph]
        for name, make in others.items():
            try:
                results[name] = polygraphy.run(make(), feeds, runs=runs, warmup=warmup)
            except EngineError as error:  # noqa: PERF203 - the others are run all the same
                failures[name] = str(error)
        timings = _timings(polygraphy, results, recorded, _allowed(bundle, graph, recorded))
        compared.append(BackendComparison(graph=graph, timings=timings, failures=failures))
    return tuple(compared)


def require_polygraphy() -> None:
    """Check, before any long work, that `load_polygraphy` can import what it needs.

    Raises:
        MissingDependencyError: Polygraphy or ONNX Runtime is not installed.
    """
    for package in _NEEDED:
        if find_spec(package) is None:
            raise _missing(package)


def load_polygraphy(flavour: str | None) -> ModuleType:
    """Import `refdiff.profiling.polygraphy_runners`, Polygraphy set to one flavour of TensorRT.

    Polygraphy reads the flavour from the environment when it is first imported, and keeps to it.

    Args:
        flavour: "tensorrt-rtx", "tensorrt", or None if no plan is run.

    Raises:
        MissingDependencyError: Polygraphy or ONNX Runtime is not installed.
    """
    before = os.environ.get(_RTX_SWITCH)
    os.environ[_RTX_SWITCH] = str(int(flavour == "tensorrt-rtx"))
    try:
        import refdiff.profiling.polygraphy_runners as runners
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise _missing(error.name) from error
    finally:
        if before is None:
            del os.environ[_RTX_SWITCH]
        else:
            os.environ[_RTX_SWITCH] = before
    return runners


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"comparing back-ends needs {package}, which is not installed; {install_line(_NEEDED[package])}"
    )


def _ort_backends() -> tuple[str, ...]:
    """Return the back-ends of ONNX Runtime's own kernels that can run here."""
    providers = import_ort("ort-cpu").ort.get_available_providers()
    return ("ort-cpu", "ort-cuda") if "CUDAExecutionProvider" in providers and has_driver() else ("ort-cpu",)


def _timings(
    polygraphy: ModuleType,
    results: Mapping[str, RunnerResult],
    recorded: Mapping[str, Array],
    allowed: Mapping[str, float],
) -> tuple[BackendTiming, ...]:
    """Compare every runner with the golden record and with the first runner."""
    first, *_ = results
    timings = []
    for name, result in results.items():
        kept = {
            output: select_recorded(result.outputs[output], record) for output, record in recorded.items()
        }
        others = () if name == first else polygraphy.compare(result.outputs, results[first].outputs, allowed)
        timings.append(
            BackendTiming(
                name=name,
                ms=Percentiles.of(result.ms),
                polygraphy_ms=float(np.median(result.polygraphy_ms)),
                from_golden=polygraphy.compare(kept, recorded, allowed),
                from_first=others,
            )
        )
    return tuple(timings)


def _allowed(bundle: Bundle, graph: str, recorded: Mapping[str, Array]) -> dict[str, float]:
    """Return output -> largest difference: the graph's tolerance times the range of torch's output."""
    tolerance = graph_tolerance(bundle.manifest.graphs[graph].precision, graph).error
    return {
        name: tolerance * (float(np.ptp(record)) or float(np.abs(record).max()) or 1.0)
        for name, record in recorded.items()
    }


def _plans(bundle: Bundle, flavour: str | None) -> tuple[dict[str, Path], Mapping[str, str]]:
    """Return graph -> its plan, and graph -> why it has none that can run here."""
    if flavour is None:
        return {}, {}
    device = find_device()
    if device is None:
        return {}, dict.fromkeys(bundle.manifest.graphs, "its plan needs an NVIDIA GPU and driver")
    try:
        plans, refused = find_plans(bundle, load_flavour(flavour), device, verify="hash")
    except MissingDependencyError as error:
        return {}, dict.fromkeys(bundle.manifest.graphs, str(error))
    return {graph: plan.path for graph, plan in plans.items()}, refused


def _difference_json(difference: OutputDifference) -> dict[str, Any]:
    """Return a JSON-ready dictionary; JSON has no infinity, so a difference without a number is null."""
    numbers = {"max_absolute": difference.max_absolute, "mean_absolute": difference.mean_absolute}
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {"output": difference.output, **finite, "within": difference.within}
