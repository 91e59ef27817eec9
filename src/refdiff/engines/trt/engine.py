"""A loaded plan: TensorRT's engine with its one execution context, and the CUDA graph that replays a run.

In: a TensorRT library, a plan's bytes and the graph's contract. Out: shapes, sizes, and work enqueued on a
stream. Features that a release may lack are looked up by name; versions are never compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refdiff.contracts.graphs import GraphSpec
from refdiff.engines.trt.buffers import StreamContext
from refdiff.engines.trt.runtime import JitCache, Library
from refdiff.engines.trt.timing import LayerLog
from refdiff.errors import EngineError

Shape = tuple[int, ...]


class Engine:
    """A graph's engine and its context; its caller allocates the activations.

    Args:
        library: of the plan's flavour.
        plan: the file's bytes, or a map of them.
        graph: the contract the plan must fulfil.
        cache: kernels that TensorRT-RTX compiled earlier.
        weights: the ONNX file from which a plan without weights gets them.
        layers: receives the time of every layer of every run; each run then waits for its end.

    Raises:
        EngineError: the plan cannot be loaded, or is of another graph.
    """

    def __init__(
        self,
        library: Library,
        plan: Any,
        graph: GraphSpec,
        *,
        cache: JitCache | None = None,
        weights: Path | None = None,
        layers: LayerLog | None = None,
    ) -> None:
        self._library = library
        self._graph = graph
        self._engine = library.load(plan, graph.name, weights)
        self._profile = 0
        self._check_tensors()
        self._cache = cache if cache is not None and cache.fits(self._engine) else None
        self._config: Any = None
        self._context = self._new_context()
        if layers is not None:
            self._context.profiler = layers.profiler

    def check_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Refuse input shapes that the plan was not built for.

        Raises:
            EngineError: with the shapes it was built for.
        """
        if not self._fitting(shapes):
            built = "; ".join(
                ", ".join(f"{name} {list(least)} to {list(most)}" for name, (least, most) in each.items())
                for each in self._profiles()
            )
            wanted = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise EngineError(
                f"{self._graph.name} was built for {built}; got {wanted}; rebuild it with: refdiff build"
            )

    def bind(self, shapes: Mapping[str, Shape], stream: int) -> dict[str, Shape]:
        """Set the input shapes of later runs; they must have passed `check_shapes`.

        Returns:
            The shapes of the outputs.

        Raises:
            EngineError: TensorRT refuses them.
        """
        profile = self._fitting(shapes)[0]
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, stream):
                raise self._library.failed(f"{self._graph.name}: profile {profile} cannot be chosen")
            self._profile = profile
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._library.failed(f"{self._graph.name}: {name} cannot be {list(shape)}")
        unknown = self._context.infer_shapes()
        made = {name: tuple(self._context.get_tensor_shape(name)) for name in self._graph.output_names}
        if unknown or any(side < 0 for shape in made.values() for side in shape):
            raise self._library.failed(f"{self._graph.name}: no output shapes for {dict(shapes)}")
        return made

    def activation_bytes(self) -> int:
        """Return the bytes of activations that the next run needs; call it after `bind`."""
        most = _first(self._engine, "device_memory_size_v2", "device_memory_size")
        if not most or self._is_static:
            return int(most)
        # For these shapes alone; if the runtime returns 0, what is enough for all shapes.
        return int(self._context.update_device_memory_size_for_shapes()) or int(most)

    def use_activations(self, address: int, size: int) -> None:
        """Set the buffer of the activations of later runs."""
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(address, size)
        else:  # TensorRT before 10.1
            self._context.device_memory = address

    def use_tensor(self, name: str, address: int) -> None:
        """Set the buffer of an input or output."""
        if not self._context.set_tensor_address(name, address):
            raise self._library.failed(f"{self._graph.name}: no address can be set for {name}")

    def enqueue(self, stream: int) -> None:
        """Enqueue one run on a stream."""
        if not self._context.execute_async_v3(stream):
            raise self._library.failed(f"{self._graph.name} failed")

    def is_capturable(self, stream: int) -> bool:
        """Return whether TensorRT allows a run of these shapes to be captured as a CUDA graph."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def close(self, *, keep_kernels: bool = True) -> None:
        """Free weights and context; calling it twice is fine.

        Args:
            keep_kernels: store what TensorRT-RTX compiled; False after a failure.
        """
        cache, self._cache = self._cache, None
        if cache is not None and keep_kernels:
            cache.save()
        self._context = None  # before the engine it belongs to
        self._config = None
        self._engine = None

    def _new_context(self) -> Any:
        how: Any = self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is not None:
            self._config = how = self._cache.attach(self._engine, how)
            self._specialize()
        context = self._engine.create_execution_context(how)
        if context is None:
            raise self._library.failed(f"no execution context for {self._graph.name}")
        return context

    def _specialize(self) -> None:
        """Let TensorRT-RTX compile for a new shape before its first run, instead of running slower kernels.

        Only for a plan of one profile, which runs at one or two shapes, or one whose first profile is a
        single shape, its usual one; a captured run would keep the slower kernels. Any other plan runs at many
        shapes, and would stop to compile for each.
        """
        strategies = getattr(self._library.module, "DynamicShapesKernelSpecializationStrategy", None)
        first, *others = self._profiles()
        if strategies is not None and (not others or all(least == most for least, most in first.values())):
            self._config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER

    def _check_tensors(self) -> None:
        """Compare names, directions, types and locations with the contract."""
        trt, engine, name = self._library.module, self._engine, self._graph.name
        got = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [each for each in got if engine.get_tensor_mode(each) == trt.TensorIOMode.INPUT]
        outputs = [each for each in got if each not in inputs]
        expected = (sorted(self._graph.input_names), sorted(self._graph.output_names))
        if (sorted(inputs), sorted(outputs)) != expected:
            raise EngineError(
                f"the plan of {name} has inputs {inputs} and outputs {outputs}, "
                f"expected {expected[0]} and {expected[1]}; rebuild it with: refdiff build"
            )
        for tensor in (*self._graph.inputs, *self._graph.outputs):
            got_dtype = str(engine.get_tensor_dtype(tensor.name)).rsplit(".", 1)[-1]
            if _NAMES.get(got_dtype) != tensor.dtype:
                raise EngineError(
                    f"the plan of {name} has {tensor.name} as {got_dtype}, expected {tensor.dtype}; "
                    "rebuild it with: refdiff build"
                )
            if engine.get_tensor_location(tensor.name) != trt.TensorLocation.DEVICE:
                raise EngineError(f"the plan of {name} wants {tensor.name} on the host; export again")

    @property
    def _is_static(self) -> bool:
        return all(
            side >= 0 for name in self._graph.input_names for side in self._engine.get_tensor_shape(name)
        )

    def _fitting(self, shapes: Mapping[str, Shape]) -> list[int]:
        """Return the optimization profiles that include these shapes, the current one first."""
        ranges = self._profiles()
        fitting = [i for i, each in enumerate(ranges) if all(_within(shapes[n], each[n]) for n in shapes)]
        return sorted(fitting, key=lambda index: (index != self._profile, index))

    def _profiles(self) -> list[dict[str, tuple[Shape, Shape]]]:
        """Return for each profile: input -> its smallest and its largest shape."""
        profiles = []
        for index in range(self._engine.num_optimization_profiles):
            ranges = {}
            for name in self._graph.input_names:
                least, _, most = self._engine.get_tensor_profile_shape(name, index)
                ranges[name] = (tuple(least), tuple(most))
            profiles.append(ranges)
        return profiles


class CudaGraph:
    """The captured run of one session: one launch instead of hundreds of kernel launches.

    TensorRT ties a captured graph to its context's shapes and addresses, so only one is kept, and it is
    dropped when any of them changes. TensorRT requires one plain run of a shape first; the second run is
    captured.

    Args:
        context: the session's.
        enabled: False never captures.
    """

    def __init__(self, context: StreamContext, *, enabled: bool) -> None:
        self._context = context
        self._enabled = enabled
        self._graph: Any = None
        self._runs = 0
        self.refusal: str | None = None
        """Reason why this graph cannot be captured; None while there is none."""

    @property
    def is_captured(self) -> bool:
        """True if the next run is a replay."""
        return self._graph is not None

    def run(self, enqueue: Callable[[], None], is_capturable: Callable[[], bool]) -> None:
        """Run once: plain, captured for the first time, or replayed.

        Raises:
            EngineError: the run failed.
        """
        if self._graph is None and self._enabled and self._runs:
            self._try_capture(enqueue, is_capturable)
        if self._graph is None:
            enqueue()
        else:
            self._context.cuda.launch(self._graph, self._context.stream)
        self._runs += 1

    def drop(self) -> None:
        """Drop the captured run, before shapes or addresses change; calling it twice is fine."""
        graph, self._graph, self._runs = self._graph, None, 0
        if graph is not None:
            self._context.wait()  # it may still be running
            self._context.cuda.end_capture(graph)

    def _try_capture(self, enqueue: Callable[[], None], is_capturable: Callable[[], bool]) -> None:
        """Capture a run; a graph that cannot be captured runs plain, its kernels launched one by one."""
        if not is_capturable():
            self._refuse("TensorRT says that it is not capturable")
            return
        try:
            self._graph = self._context.cuda.capture(self._context.stream, enqueue)
        except EngineError as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> None:
        self._enabled, self.refusal = False, reason


_NAMES = {"FLOAT": "float32", "INT32": "int32", "HALF": "float16", "INT64": "int64"}
"""TensorRT's name of a type -> numpy's."""


def _within(shape: Shape, extent: tuple[Shape, Shape]) -> bool:
    least, most = extent
    return len(shape) == len(least) and all(
        a <= side <= b for a, side, b in zip(least, shape, most, strict=True)
    )


def _first(holder: Any, *names: str) -> Any:
    """Return the first of these attributes that this release has, 0 if it has none."""
    return next((getattr(holder, name) for name in names if hasattr(holder, name)), 0)
