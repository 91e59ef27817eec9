"""Which of several forms of a graph the GPU here runs faster: each is built, loaded, and run in turns.

In: ONNX files of one contract, and feeds. Out: medians of the device's own time. Plans are thrown away.
"""

from __future__ import annotations

import contextlib
import mmap
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Array
from refdiff.engines.trt.buffers import StreamContext
from refdiff.engines.trt.build_log import make_log
from refdiff.engines.trt.building import BuildTask, build_plan
from refdiff.engines.trt.cuda import Cuda
from refdiff.engines.trt.device import Device, find_device
from refdiff.engines.trt.engine import Engine
from refdiff.engines.trt.flavour import Flavour, choose_flavour
from refdiff.engines.trt.monitor import Tell, Watch
from refdiff.engines.trt.open import load_environment
from refdiff.engines.trt.options import BuildOptions
from refdiff.engines.trt.runtime import SUFFIX, JitCache, Library
from refdiff.engines.trt.session import TrtSession
from refdiff.engines.trt.shapes import ShapeProfile, ShapeRange
from refdiff.engines.trt.validation import knows
from refdiff.errors import EngineError, MissingDependencyError

WARM_UPS = 5
"""Runs before those that count: kernels are compiled and CUDA graphs recorded in them."""

ROUNDS = 50
"""In each round every form runs once."""


class LatencyRace:
    """Times graphs on one GPU.

    Args:
        flavour: the TensorRT that builds and runs them.
        cuda: CUDA.
        device: the GPU.
        tell: told TensorRT's progress.
    """

    def __init__(self, flavour: Flavour, cuda: Cuda, device: Device, tell: Tell) -> None:
        self._flavour = flavour
        self._cuda = cuda
        self._library = Library(flavour.module)
        self._tell = tell
        self.where = f"{device.name}, {flavour.title}"
        """What the times are of, for a person."""

    def medians_ms(
        self, graph: GraphSpec, forms: Mapping[str, Path], feeds: Mapping[str, Array], *, scratch: Path
    ) -> dict[str, float]:
        """Build every form for exactly the shapes of the feeds, and run them in turns.

        Args:
            graph: the contract of all forms.
            forms: name -> its ONNX file; the names are for the caller and for messages.
            feeds: of every run.
            scratch: a folder for the plans, which take as much room as the weights; they stay there.

        Returns:
            Name -> median of the milliseconds between two CUDA events around a run.

        Raises:
            EngineError: a form cannot be built or run here, or the device has too little memory for all.
            InputError: there is no room for the plans.
        """
        # All of them first: a build measures kernels, and nothing else may hold the device's memory then.
        plans = {name: self._built(graph, name, onnx, feeds, scratch) for name, onnx in forms.items()}
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
                    times[name].append(_repeated(session))
            return {name: statistics.median(each) for name, each in times.items()}

    def _built(
        self, graph: GraphSpec, name: str, onnx: Path, feeds: Mapping[str, Array], scratch: Path
    ) -> Path:
        shapes = {tensor: tuple(values.shape) for tensor, values in feeds.items()}
        profile: ShapeProfile = {
            tensor: ShapeRange(least=shape, usual=shape, most=shape) for tensor, shape in shapes.items()
        }
        task = BuildTask(graph=graph.name, onnx=onnx, shapes=(profile,), options=BuildOptions())
        plan = scratch / f"{name}.plan"
        watch = Watch(f"{graph.name} in {name}", self._tell)
        build_plan(self._flavour, task, plan, make_log(self._flavour), watch)
        return plan

    def _load(self, graph: GraphSpec, plan: Path) -> Engine:
        with plan.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # As in a run: with a cache, TensorRT-RTX compiles for the shapes at once (`Engine._specialise`).
        cache = JitCache(plan.with_name(plan.name + SUFFIX), plan.name)
        return Engine(self._library, content, graph, cache=cache)


def _repeated(session: TrtSession) -> float:
    """Run once more; how long the device took."""
    session.repeat()
    elapsed = session.timings().device_ms
    if elapsed is None:
        raise EngineError(f"{session.graph.name}: the device did not tell how long it ran")
    return elapsed


def find_latency_race(tell: Tell) -> tuple[LatencyRace | None, str]:
    """The clock of this machine, where it has a GPU and a TensorRT that runs on it.

    Args:
        tell: told TensorRT's progress.

    Returns:
        The clock, or None; and what it is, or why there is none.
    """
    device = find_device()
    if device is None:
        return None, "this machine shows no GPU"
    try:
        flavour, _ = choose_flavour(has_device=True)
        if not knows(flavour, device.compute_capability):
            return None, f"{flavour.title} does not know {device.name}"
        _, cuda, _ = load_environment(flavour.name)
        clock = LatencyRace(flavour, cuda, device, tell)
    except (EngineError, MissingDependencyError) as error:
        return None, str(error)
    except (ImportError, OSError) as error:  # a library that is not there, which nobody here asked for
        return None, f"TensorRT or CUDA cannot be loaded: {error}; see: refdiff doctor"
    return clock, clock.where
