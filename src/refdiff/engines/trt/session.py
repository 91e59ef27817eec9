"""A TensorRT session: named arrays in, named arrays out, all work on one stream.

Inputs go through pinned staging into device buffers, or come from another session's outputs on the device.
Every output has device memory, because TensorRT writes them all; only the requested ones are copied to the
host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Array, Feed, Timings, check_feeds, wanted_outputs
from refdiff.engines.trt.buffers import (
    DeviceBuffer,
    OutputSlot,
    PinnedBuffer,
    StreamContext,
    TrtArray,
    nbytes,
)
from refdiff.engines.trt.engine import CudaGraph, Engine, Shape
from refdiff.engines.trt.timing import LayerLog, RunTimer
from refdiff.errors import EngineError, InputError, RefdiffError


class TrtSession:
    """One graph on the device.

    Args:
        graph: the contract.
        context: shared by the sessions of one factory.
        load: makes the graph's engine; called at the first run, and again after `unload`.
        activations: buffer of the engine's activations; None: a separate one.
        before_run: called before the engine is needed, so that other sessions can be unloaded.
        max_batch: most rows of the axis b that the plan takes; None: unknown.
        cuda_graphs: replay runs of unchanging shapes as CUDA graphs; ignored if layers are timed.
        timed: measure the device's time of every run.
        layers: the log that the engine reports its layers' times to; None: they are not timed.
    """

    def __init__(
        self,
        graph: GraphSpec,
        context: StreamContext,
        load: Callable[[], Engine],
        *,
        activations: DeviceBuffer | None = None,
        before_run: Callable[[TrtSession], None] | None = None,
        cuda_graphs: bool = True,
        max_batch: int | None = None,
        timed: bool = False,
        layers: LayerLog | None = None,
    ) -> None:
        self._graph = graph
        self._context = context
        self._load = load
        self._owns_activations = activations is None
        self._activations = activations or DeviceBuffer(context.cuda, f"activations of {graph.name}")
        self._before_run = before_run
        self._max_batch = max_batch
        self._engine: Engine | None = None
        self._inputs = {
            name: DeviceBuffer(context.cuda, f"{graph.name}/{name}") for name in graph.input_names
        }
        self._staging = {name: PinnedBuffer(context.cuda) for name in graph.input_names}
        self._outputs = {name: OutputSlot(context, f"{graph.name}/{name}") for name in graph.output_names}
        self._dtypes = {t.name: np.dtype(t.dtype) for t in (*graph.inputs, *graph.outputs)}
        self._shapes: dict[str, Shape] = {}
        self._produced: dict[str, Shape] = {}
        self._used: tuple[int, int] | None = None
        self._staged: Any = context.cuda.new_event()
        self._closed = False
        self._timer = RunTimer(context) if timed else None
        self._layers = layers
        self.cuda_graph = CudaGraph(context, enabled=cuda_graphs and layers is None)

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._graph

    @property
    def max_batch(self) -> int | None:
        """Most rows that the plan takes at once."""
        return self._max_batch

    @property
    def is_loaded(self) -> bool:
        """True if the weights are on the device."""
        return self._engine is not None

    @property
    def is_closed(self) -> bool:
        """True if it was closed, by its user or after a failure."""
        return self._closed

    @overload
    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: Literal[False] = False,
    ) -> dict[str, Array]: ...

    @overload
    def run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, keep_on_device: bool
    ) -> Mapping[str, Feed]: ...

    def run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, keep_on_device: bool = False
    ) -> Mapping[str, Feed]:
        """Run once; see `refdiff.contracts.session.Session`."""
        wanted = self._enqueue(feeds, outputs)
        if keep_on_device:
            return {
                name: self._outputs[name].view(self._produced[name], self._dtypes[name]) for name in wanted
            }
        with self._closing_on_failure():
            staged = {
                name: self._outputs[name].start_copy(self._produced[name], self._dtypes[name])
                for name in wanted
            }
            self._context.wait()
            return {name: array.copy() for name, array in staged.items()}

    def repeat(self) -> None:
        """Run again on the feeds of the last run and wait for the device, to measure.

        Raises:
            InputError: there was no run since the weights were loaded.
            EngineError: the run failed.
        """
        self._check_open()
        engine = self._engine
        if engine is None or not self._shapes:
            raise InputError(f"{self._graph.name} has not run yet; run it once before repeating")
        with self._closing_on_failure():
            self._bind(engine, self._shapes)
            self._start(engine)
            self._context.wait()

    def timings(self) -> Timings:
        """See `refdiff.contracts.session.Session`; `device_ms` is between CUDA events around the run."""
        self._check_open()
        return Timings(
            device_ms=None if self._timer is None else self._timer.elapsed_ms(),
            layers=() if self._layers is None else self._layers.times(),
        )

    def load(self) -> None:
        """Load the weights to the device now instead of at the first run.

        Raises:
            EngineError: the plan cannot be loaded; the session is closed.
        """
        self._check_open()
        with self._closing_on_failure():
            self._load_engine()

    def unload(self) -> None:
        """Remove weights and activations from the device; outputs that were kept there stay."""
        with self._closing_on_failure():
            self.cuda_graph.drop()
            self._context.wait()
            self._shapes, self._used = {}, None
            if self._engine is not None:
                self._engine.close()
            self._engine = None
            if self._owns_activations:
                self._activations.free()

    def close(self) -> None:
        """Free everything; calling it twice is fine."""
        self._close(failed=False)

    def _close(self, *, failed: bool) -> None:
        if self._closed:
            return
        self._closed = True
        engine, self._engine = self._engine, None
        with contextlib.ExitStack() as stack:  # every callback runs, even if others fail
            stack.callback(self._context.cuda.end_event, self._staged)
            if self._timer is not None:
                stack.callback(self._timer.close)
            for name in self._inputs:
                stack.callback(self._inputs[name].free)
                stack.callback(self._staging[name].free)
            for slot in self._outputs.values():
                stack.callback(slot.free)
            if self._owns_activations:
                stack.callback(self._activations.free)
            if engine is not None:
                stack.callback(engine.close, keep_kernels=not failed)
            stack.callback(self._context.wait)
            stack.callback(self.cuda_graph.drop)

    def _enqueue(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None) -> list[str]:
        """Check, bind, copy in and start a run; return the names of the requested outputs."""
        check_feeds(self._graph, feeds)
        wanted = wanted_outputs(self._graph, outputs)
        self._check_open()
        sources = {name: self._source(feed) for name, feed in feeds.items()}
        with self._closing_on_failure():
            engine = self._load_engine()
        shapes = {name: tuple(feed.shape) for name, feed in feeds.items()}
        engine.check_shapes(shapes)  # a refusal leaves the session usable
        with self._closing_on_failure():
            self._bind(engine, shapes)
            self._copy_in(sources)
            self._start(engine)
        return wanted

    def _start(self, engine: Engine) -> None:
        stream = self._context.stream
        with contextlib.nullcontext() if self._timer is None else self._timer.measure():
            self.cuda_graph.run(lambda: engine.enqueue(stream), lambda: engine.is_capturable(stream))
        for slot in self._outputs.values():
            slot.writes += 1

    def _source(self, feed: Feed) -> Array | tuple[int, int]:
        """Return a host array, or address and size of a device array."""
        if isinstance(feed, np.ndarray):
            return feed
        if not isinstance(feed, TrtArray):
            raise InputError(
                f"{self._graph.name} was fed a {type(feed).__name__}, expected an array; use .to_host()"
            )
        return feed.address_on(self._context), nbytes(feed.shape, feed.dtype)

    def _load_engine(self) -> Engine:
        if self._before_run is not None:
            self._before_run(self)
        if self._engine is None:
            self._engine = self._load()
        return self._engine

    def _bind(self, engine: Engine, shapes: dict[str, Shape]) -> None:
        """Set shapes and addresses that changed; while nothing changes, do nothing."""
        activations = self._activations
        if shapes != self._shapes:
            self.cuda_graph.drop()
            self._shapes = {}
            self._produced = engine.bind(shapes, self._context.stream)
            for name, shape in shapes.items():
                self._inputs[name].reserve(max(nbytes(shape, self._dtypes[name]), 1))
                engine.use_tensor(name, self._inputs[name].address)
            for name, shape in self._produced.items():
                self._outputs[name].memory.reserve(max(nbytes(shape, self._dtypes[name]), 1))
                engine.use_tensor(name, self._outputs[name].memory.address)
            activations.reserve(engine.activation_bytes())
            self._shapes, self._used = shapes, None
        if self._used != (activations.address, activations.size):
            self.cuda_graph.drop()  # another session has enlarged the shared buffer
            engine.use_activations(activations.address, activations.size)
            self._used = (activations.address, activations.size)

    def _copy_in(self, sources: Mapping[str, Array | tuple[int, int]]) -> None:
        cuda, stream = self._context.cuda, self._context.stream
        cuda.wait_for(self._staged)  # the last run's copies may still read the staging
        for name, source in sources.items():
            target = self._inputs[name].address
            if isinstance(source, tuple):
                cuda.copy_across(target, source[0], source[1], stream)
            elif source.nbytes:
                np.copyto(self._staging[name].array(source.shape, source.dtype), source)
                cuda.copy_in(target, self._staging[name].address, source.nbytes, stream)
        cuda.record(self._staged, stream)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self._graph.name}: the session is closed; open it again")

    @contextlib.contextmanager
    def _closing_on_failure(self) -> Iterator[None]:
        """Close the session after a failure, because nothing on the device is reliable then."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(RefdiffError):
                self._close(failed=True)
            raise
