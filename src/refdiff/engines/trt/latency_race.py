"""Compare the latency of several forms of a graph on this machine's GPU: build each, run them in turns.

In: ONNX files of one contract, and feeds. Out: medians of the device's own time. The plans are temporary.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.progress import Progress
from refdiff.contracts.session import Array
from refdiff.engines.trt.buffers import StreamContext
from refdiff.engines.trt.building import BuildTask, build_plan
from refdiff.engines.trt.cuda import Cuda
from refdiff.engines.trt.device import Device, find_device
from refdiff.engines.trt.engine import Engine
from refdiff.engines.trt.flavour import Flavour, choose_flavour
from refdiff.engines.trt.monitor import Watch, make_log
from refdiff.engines.trt.open import load_environment
from refdiff.engines.trt.options import BuildOptions
from refdiff.engines.trt.runtime import JitCache, Library, map_plan
from refdiff.engines.trt.session import TrtSession
from refdiff.engines.trt.shapes import ShapeProfile, ShapeRange
from refdiff.errors import EngineError, MissingDependencyError

WARM_UPS = 5
"""Runs before the timed ones, in which kernels are compiled and CUDA graphs are recorded."""

ROUNDS = 50
"""Rounds; every form runs once in each."""


class LatencyRace:
    """Builds forms of a graph with one TensorRT and times them on one GPU."""

    def __init__(self, flavour: Flavour, cuda: Cuda, device: Device, progress: Progress) -> None:
        self._flavour = flavour
        self._cuda = cuda
        self._library = Library(flavour.module)
        self._progress = progress
        self.where = f"{device.name}, {flavour.title}"
        """GPU and TensorRT, for messages."""

    def medians_ms(
        self, graph: GraphSpec, forms: Mapping[str, Path], feeds: Mapping[str, Array], *, scratch: Path
    ) -> dict[str, float]:
        """Build every form for exactly the shapes of the feeds, and run them in turns.

        Args:
            graph: the contract of all forms.
            forms: name -> its ONNX file; names appear in the result and in messages.
            feeds: feeds of every run.
            scratch: a folder for the plans, which are as large as the weights; they stay there.

        Returns:
            Name -> median time in ms between two CUDA events around a run.

        Raises:
            EngineError: a form cannot be built or run here, or the device has too little memory for all.
            InputError: the plans cannot be written.
        """
        # All of them first: a build measures kernels, and nothing else may use the device meanwhile.
        plans = {name: self._build(graph, name, onnx, feeds, scratch) for name, onnx in forms.items()}
        context = StreamContext(self._cuda)
        with contextlib.ExitStack() as stack:
            stack.callback(context.close)
            sessions = {}
            for name, plan in plans.items():
                session = TrtSession(graph, context, partial(self._load, graph, plan), timed=True)
                stack.callback(session.close)
                sessions[name] = session
                for _ in range(WARM_UPS):
                    session.run(feeds)
            times: dict[str, list[float]] = {name: [] for name in sessions}
            for _ in range(ROUNDS):
                for name, session in sessions.items():
                    times[name].append(time_repeat(session))
            return {name: statistics.median(each) for name, each in times.items()}

    def _build(
        self, graph: GraphSpec, name: str, onnx: Path, feeds: Mapping[str, Array], scratch: Path
    ) -> Path:
        shapes = {tensor: tuple(values.shape) for tensor, values in feeds.items()}
        profile: ShapeProfile = {
            tensor: ShapeRange(least=shape, usual=shape, most=shape) for tensor, shape in shapes.items()
        }
        task = BuildTask(graph=graph.name, onnx=onnx, shapes=(profile,), options=BuildOptions())
        plan = scratch / f"{name}.plan"
        watch = Watch(f"{graph.name} in {name}", self._progress)
        build_plan(self._flavour, task, plan, make_log(self._flavour), watch)
        return plan

    def _load(self, graph: GraphSpec, plan: Path) -> Engine:
        # As in a run: with a cache, TensorRT-RTX compiles for the shapes at once (`Engine._specialize`).
        return Engine(self._library, map_plan(plan), graph, cache=JitCache(plan, plan.name))


def time_repeat(session: TrtSession) -> float:
    """Run again on the same feeds and return the device's time in ms.

    Raises:
        EngineError: the run failed, or its time was not measured.
    """
    session.repeat()
    elapsed = session.timings().device_ms
    if elapsed is None:
        raise EngineError(f"{session.graph.name}: the device reported no time")
    return elapsed


def find_latency_race(progress: Progress) -> tuple[LatencyRace | None, str]:
    """Prepare a race on this machine, if it has a GPU and a TensorRT that runs on it.

    Args:
        progress: receives TensorRT's progress.

    Returns:
        The race and what it runs on; or None and the reason.
    """
    device = find_device()
    if device is None:
        return None, "this machine shows no GPU"
    try:
        flavour, _ = choose_flavour(has_device=True)
        if not flavour.supports(device.compute_capability):
            return None, f"{flavour.title} does not know {device.name}"
        _, cuda, _ = load_environment(flavour.name)
        race = LatencyRace(flavour, cuda, device, progress)
    except (EngineError, MissingDependencyError) as error:
        return None, str(error)
    except (ImportError, OSError) as error:  # a missing library; the caller did not ask for TensorRT
        return None, f"TensorRT or CUDA cannot be loaded: {error}; see: refdiff doctor"
    return race, race.where
