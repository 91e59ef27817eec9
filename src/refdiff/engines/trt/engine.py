"""A plan that is loaded: TensorRT's engine and its one execution context, with checked answers.

In: the module of a flavour (`tensorrt` or `tensorrt_rtx`, or a stand-in), a plan's bytes and the graph's
contract. Out: shapes, sizes, and work enqueued on a stream. What a release does not have is asked for by
name; versions are never compared here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refdiff.contracts.graphs import GraphSpec
from refdiff.engines.trt.runtime import JitCache, Library
from refdiff.engines.trt.timing import LayerLog
from refdiff.errors import EngineError

Shape = tuple[int, ...]


class Engine:
    """A graph's engine and its context, which uses activations that somebody else allocates.

    Args:
        library: of the plan's flavour.
        plan: the file's bytes, or a map of them.
        graph: the contract the plan must fulfil.
        cache: kernels that TensorRT-RTX compiled earlier.
        weights: the ONNX file that a plan without weights gets them from.
        layers: told of every layer of every run, which makes a run wait for its end.

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
            EngineError: says which shapes it was built for.
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
        """Set the input shapes of the runs that follow, which passed `check_shapes`.

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
        """Device memory that the next run needs for activations; call it after `bind`."""
        most = _first(self._engine, "device_memory_size_v2", "device_memory_size")
        if not most or self._is_static:
            return int(most)
        # For these shapes alone; a runtime that does not know answers 0 and gets what suffices for all.
        return int(self._context.update_device_memory_size_for_shapes()) or int(most)

    def use_activations(self, address: int, size: int) -> None:
        """Where the activations of the runs that follow go."""
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(address, size)
        else:  # TensorRT before 10.1
            self._context.device_memory = address

    def use_tensor(self, name: str, address: int) -> None:
        """Where an input is read from, or an output written to."""
        if not self._context.set_tensor_address(name, address):
            raise self._library.failed(f"{self._graph.name}: no address can be set for {name}")

    def enqueue(self, stream: int) -> None:
        """Run once, as soon as the stream comes to it."""
        if not self._context.execute_async_v3(stream):
            raise self._library.failed(f"{self._graph.name} failed")

    def is_capturable(self, stream: int) -> bool:
        """Whether a run of the present shapes can be recorded as a CUDA graph, as far as TensorRT says."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def close(self, *, keep_kernels: bool = True) -> None:
        """Free weights and context; calling it twice is fine.

        Args:
            keep_kernels: write down what TensorRT-RTX compiled; not after a failure.
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
            self._specialise()
        context = self._engine.create_execution_context(how)
        if context is None:
            raise self._library.failed(f"no execution context for {self._graph.name}")
        return context

    def _specialise(self) -> None:
        """Have TensorRT-RTX compile for a new shape before its first run, not while slower kernels stand in.

        A plan of one profile meets a shape or two, and a captured run would keep what stood in. A plan of
        several meets many shapes, and would stop for each.
        """
        strategies = getattr(self._library.module, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is not None and self._engine.num_optimization_profiles == 1:
            self._config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER

    def _check_tensors(self) -> None:
        """Compare names, directions, types and places with the contract."""
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
        """The optimisation profiles that these shapes are within; the present one first, then by number."""
        ranges = self._profiles()
        fitting = [i for i, each in enumerate(ranges) if all(_within(shapes[n], each[n]) for n in shapes)]
        return sorted(fitting, key=lambda index: (index != self._profile, index))

    def _profiles(self) -> list[dict[str, tuple[Shape, Shape]]]:
        """Of each profile: input -> its smallest and its largest shape."""
        profiles = []
        for index in range(self._engine.num_optimization_profiles):
            ranges = {}
            for name in self._graph.input_names:
                least, _, most = self._engine.get_tensor_profile_shape(name, index)
                ranges[name] = (tuple(least), tuple(most))
            profiles.append(ranges)
        return profiles


_NAMES = {"FLOAT": "float32", "INT32": "int32", "HALF": "float16", "INT64": "int64"}
"""TensorRT's name of a type -> numpy's."""


def _within(shape: Shape, extent: tuple[Shape, Shape]) -> bool:
    least, most = extent
    return len(shape) == len(least) and all(
        a <= side <= b for a, side, b in zip(least, shape, most, strict=True)
    )


def _first(thing: Any, *names: str) -> Any:
    """The first of these attributes that this release has."""
    return next((getattr(thing, name) for name in names if hasattr(thing, name)), 0)
