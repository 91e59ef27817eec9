"""A bundle's graphs side by side in every back-end that is here, on the golden feeds.

The times are by our clock around each runner; the numbers are compared by Polygraphy's comparator, with the
committed tolerance of the graph as the largest difference allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.accuracy.tolerances import graph_tolerance
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.parity import select_recorded
from refdiff.contracts.progress import Progress
from refdiff.contracts.session import Array
from refdiff.engines.factory import BackendSessions
from refdiff.engines.trt.device import find_device
from refdiff.engines.trt.flavour import load_flavour
from refdiff.engines.trt.open import TENSORRT
from refdiff.engines.trt.plans import find_plans, has_plans
from refdiff.errors import EngineError, MissingDependencyError
from refdiff.profiling.measuring import load_polygraphy, ort_backends
from refdiff.profiling.samples import Percentiles

if TYPE_CHECKING:
    from refdiff.profiling.polygraphy_runners import Apart, Ran


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One runner on one graph."""

    name: str
    ms: Percentiles
    """By our clock, around the runner."""
    polygraphy_ms: float
    """What Polygraphy says of a run, in the middle; no latency."""
    from_golden: tuple[Apart, ...]
    """From torch's recorded outputs."""
    from_first: tuple[Apart, ...]
    """From the first runner's; empty for the first."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "name": self.name,
            "ms": self.ms.to_json(),
            "polygraphy_ms": round(self.polygraphy_ms, 4),
            "from_golden": [_apart_json(each) for each in self.from_golden],
            "from_first": [_apart_json(each) for each in self.from_first],
        }


@dataclass(frozen=True, kw_only=True)
class GraphContest:
    """All runners on one graph, and those that could not."""

    graph: str
    contenders: tuple[Contender, ...]
    failures: Mapping[str, str]
    """Runner -> why it is not here."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "graph": self.graph,
            "contenders": [each.to_json() for each in self.contenders],
            "failures": dict(self.failures),
        }


def contest(
    bundle: Bundle, sessions: BackendSessions, *, threads: int | None, runs: int, warmup: int, tell: Progress
) -> tuple[GraphContest, ...]:
    """Run every graph in every back-end that is here, one runner after the other.

    Args:
        bundle: an opened one.
        sessions: the first runner of every graph; left open.
        threads: of the others.
        runs: that count, of each.
        warmup: before them.
        tell: told one line per graph.

    Raises:
        MissingDependencyError: Polygraphy is not installed.
        EngineError: the first runner failed.
    """
    flavour = _flavour(bundle, sessions.backend)
    polygraphy = load_polygraphy(flavour)
    plans, refused = _plans(bundle, flavour)
    found = []
    for graph, (feeds, recorded) in bundle.golden().items():
        tell(f"back-ends: {graph}")
        path, first = (
            bundle.graph_path(graph),
            polygraphy.SessionRunner(sessions.open(graph), sessions.backend),
        )
        done = {sessions.backend: polygraphy.run(first, feeds, runs=runs, warmup=warmup)}
        failures: dict[str, str] = {}
        others = {
            f"polygraphy {backend}": partial(polygraphy.ort_runner, path, backend, threads)
            for backend in ort_backends()
        }
        if graph in plans:
            others[f"polygraphy {flavour}"] = partial(polygraphy.trt_runner, plans[graph], flavour)
        elif graph in refused:
            failures[f"polygraphy {flavour}"] = refused[graph]
        for name, make in others.items():
            try:
                done[name] = polygraphy.run(make(), feeds, runs=runs, warmup=warmup)
            except EngineError as error:  # noqa: PERF203 - it is the others' turn then
                failures[name] = str(error)
        contenders = _judged(polygraphy, done, recorded, _allowed(bundle, graph, recorded))
        found.append(GraphContest(graph=graph, contenders=contenders, failures=failures))
    return tuple(found)


def _judged(
    polygraphy: ModuleType,
    done: Mapping[str, Ran],
    recorded: Mapping[str, Array],
    allowed: Mapping[str, float],
) -> tuple[Contender, ...]:
    """Everybody beside the golden record, and beside the first."""
    first = next(iter(done))
    return tuple(
        Contender(
            name=name,
            ms=Percentiles.of(ran.ms),
            polygraphy_ms=float(np.median(ran.polygraphy_ms)),
            from_golden=polygraphy.apart(
                {output: select_recorded(ran.outputs[output], record) for output, record in recorded.items()},
                recorded,
                allowed,
            ),
            from_first=() if name == first else polygraphy.apart(ran.outputs, done[first].outputs, allowed),
        )
        for name, ran in done.items()
    )


def _allowed(bundle: Bundle, graph: str, recorded: Mapping[str, Array]) -> dict[str, float]:
    """Output -> the largest difference: the graph's tolerance is a share of the range of torch's output."""
    tolerance = graph_tolerance(bundle.manifest.graphs[graph].precision, graph).error
    return {
        name: tolerance * (float(np.ptp(record)) or float(np.abs(record).max()) or 1.0)
        for name, record in recorded.items()
    }


def _flavour(bundle: Bundle, backend: str) -> str | None:
    """The one TensorRT that Polygraphy is to speak: the sessions', else that of the bundle's plans."""
    if backend in TENSORRT:
        return backend
    return next((name for name in TENSORRT if has_plans(bundle, name)), None)


def _plans(bundle: Bundle, flavour: str | None) -> tuple[dict[str, Path], Mapping[str, str]]:
    """Graph -> its plan; and graph -> why it has none that can run here."""
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


def _apart_json(apart: Apart) -> dict[str, Any]:
    """JSON has no infinity: a difference without a number is null."""
    return {
        "output": apart.output,
        "max_absolute": _finite(apart.max_absolute),
        "mean_absolute": _finite(apart.mean_absolute),
        "within": apart.within,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
