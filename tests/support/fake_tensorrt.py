"""An in-memory stand-in for the calls of `tensorrt` and `tensorrt_rtx` that sessions make.

A plan is JSON: names, types and shapes of its tensors, and its profiles. What it computes: output k is k
times the sum of all inputs, on the addresses it was given, on `fake_cuda`'s stream.
"""

import ctypes
import json
from collections.abc import Mapping
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from refdiff.contracts.graphs import GraphSpec
from tests.support.fake_cuda import FakeCuda


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class DataType(Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT32 = "int32"


class Severity(IntEnum):
    ERROR = 1
    WARNING = 2


class ILogger:
    ERROR = Severity.ERROR


def plan_of(graph: GraphSpec, *, profiles=None, activations: int = 1000, **changes) -> bytes:
    """A plan that fulfils the contract; dynamic dimensions from 1 to 4 unless profiles say otherwise."""
    inputs = {t.name: list(t.shape) for t in graph.inputs}

    def bound(size: int) -> dict[str, list[int]]:
        return {name: [size if isinstance(n, str) else n for n in shape] for name, shape in inputs.items()}

    document = {
        "inputs": inputs,
        "outputs": {t.name: list(t.shape) for t in graph.outputs},
        "dtypes": {t.name: t.dtype for t in (*graph.inputs, *graph.outputs)},
        "profiles": profiles or [[bound(1), bound(4)]],
        "activations": activations,
        "ms": 1.5,
        "host": [],
    }
    return json.dumps({**document, **changes}).encode()


class IProfiler:
    """Its subclasses have to call this, as TensorRT's own demand."""

    ready = False

    def __init__(self) -> None:
        self.ready = True


class FakeTensorRT:
    """As the module; `rtx` adds what only TensorRT-RTX has, `old` takes away what 10.0 did not have."""

    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ILogger = ILogger
    IProfiler = IProfiler
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    def __init__(self, cuda: FakeCuda, *, rtx: bool = False, old: bool = False) -> None:
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        self.__version__ = "1.7.1" if rtx else "10.3.0"
        self.cuda = cuda
        self.rtx = rtx
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        self.old = old
        self.loaded = 0
        self.loads = 0
        self.fail: str | None = None
        self.fill: float | None = None
        self.capturable = True
        self.runs = 0
        self.times: list[float] = []
        """Milliseconds of each run."""
        self.stalls_at: int | None = None
        """The run that takes a second more."""
        self.refitted: list[str] = []

    def Runtime(self, log):
        return Runtime(self, log)

    def Refitter(self, engine, log):
        return SimpleNamespace(refit_cuda_engine=lambda: True)

    def OnnxParserRefitter(self, refitter, log):
        def refit_from_file(path):
            if not Path(path).exists():
                log.log(Severity.ERROR, "no such file")
                return False
            self.refitted.append(path)
            return True

        return SimpleNamespace(refit_from_file=refit_from_file)


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, trt: FakeTensorRT, log: ILogger) -> None:
        self._trt, self._log = trt, log

    def deserialize_cuda_engine(self, plan):
        try:
            document = json.loads(bytes(plan))
        except ValueError:
            self._log.log(Severity.WARNING, "chatter")
            self._log.log(Severity.ERROR, "Magic tag\ndoes not match")
            return None
        self._trt.loads += 1
        return (OldEngine if self._trt.old else RtxEngine if self._trt.rtx else Engine)(
            self._trt, document, self._log
        )


class BaseEngine:
    def __init__(self, trt: FakeTensorRT, document: Mapping, log: ILogger) -> None:
        self._trt, self._log, self.document = trt, log, document
        self.names = [*document["inputs"], *document["outputs"]]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(document["profiles"])
        trt.loaded += 1

    def __del__(self) -> None:
        self._trt.loaded -= 1

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.document["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType(self.document["dtypes"][name])

    def get_tensor_location(self, name):
        return TensorLocation.HOST if name in self.document["host"] else TensorLocation.DEVICE

    def get_tensor_shape(self, name):
        shape = {**self.document["inputs"], **self.document["outputs"]}[name]
        return [-1 if isinstance(side, str) else side for side in shape]

    def get_tensor_profile_shape(self, name, profile):
        least, most = self.document["profiles"][profile]
        return [least[name], most[name], most[name]]

    def create_execution_context(self, how):
        if self._trt.fail == "context":
            self._log.log(Severity.ERROR, "no context for you")
            return None
        return (OldContext if self._trt.old else Context)(self._trt, self, how, self._log)


class Engine(BaseEngine):
    @property
    def device_memory_size_v2(self):
        return self.document["activations"] * 4


class OldEngine(BaseEngine):
    @property
    def device_memory_size(self):
        return self.document["activations"] * 4


class RtxEngine(Engine):
    def create_runtime_config(self):
        return RuntimeConfig(self._trt)


class RuntimeCache:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt, self.kernels = trt, b""

    def deserialize(self, blob):
        if not blob.startswith(self._trt.__version__.encode()):
            return False
        self.kernels = blob
        return True

    def serialize(self):
        return self.kernels


class RuntimeConfig:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt, self.strategy, self.cache = trt, None, None
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return RuntimeCache(self._trt)

    def set_runtime_cache(self, cache):
        self.cache = cache


class BaseContext:
    def __init__(self, trt: FakeTensorRT, engine: BaseEngine, how, log: ILogger) -> None:
        config = how if isinstance(how, RuntimeConfig) else None
        assert (config.strategy if config else how) == "user managed"
        self._trt, self._engine, self._log = trt, engine, log
        self._config = config
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._activations = (0, 0)
        self.profiler: IProfiler | None = None

    def set_optimization_profile_async(self, profile, stream):
        self._profile, self._shapes = profile, {}
        return True

    def set_input_shape(self, name, shape):
        least, most = self._engine.document["profiles"][self._profile]
        self._shapes[name] = shape
        return all(a <= side <= b for a, side, b in zip(least[name], shape, most[name], strict=True))

    def infer_shapes(self):
        return [name for name in self._engine.document["inputs"] if name not in self._shapes]

    def get_tensor_shape(self, name):
        sizes = {
            axis: side
            for tensor, shape in self._engine.document["inputs"].items()
            for axis, side in zip(shape, self._shapes[tensor], strict=True)
        }
        shape = {**self._engine.document["inputs"], **self._engine.document["outputs"]}[name]
        return [sizes.get(side, -1) if isinstance(side, str) else side for side in shape]

    def update_device_memory_size_for_shapes(self):
        return self._engine.document["activations"] * max(
            side for s in self._shapes.values() for side in s[:1]
        )

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return name in self._engine.names

    def is_stream_capturable(self, stream):
        return self._trt.capturable

    def execute_async_v3(self, stream):
        if self._trt.fail == "run":
            self._log.log(Severity.ERROR, "kernel went away")
            return False
        if self._config is not None:
            self._config.cache.kernels = self._trt.__version__.encode() + str(sorted(self._shapes)).encode()
        addresses, activations = dict(self._addresses), self._activations
        shapes = {name: tuple(self.get_tensor_shape(name)) for name in self._engine.names}
        self._trt.cuda.enqueue(lambda: self._compute(addresses, shapes, activations))
        return True

    def _compute(self, addresses, shapes, activations) -> None:
        """Output k is (k + 1) times the sum of all inputs, as a scalar everywhere."""
        self._trt.runs += 1
        self._trt.cuda.check(*activations)
        document = self._engine.document
        stall = 1000.0 if self._trt.runs == self._trt.stalls_at else 0.0
        self._trt.cuda.elapsed_ms = document["ms"] + stall
        self._trt.times.append(self._trt.cuda.elapsed_ms)
        arrays = {name: self._view(addresses[name], shape, name) for name, shape in shapes.items()}
        total = sum(float(arrays[name].sum()) for name in document["inputs"])
        for index, name in enumerate(document["outputs"]):
            arrays[name][...] = total * (index + 1) if self._trt.fill is None else self._trt.fill
            if self.profiler is not None:  # a layer for each output, as many milliseconds as its number
                assert self.profiler.ready
                self.profiler.report_layer_time(name, float(index + 1))

    def _view(self, address, shape, name):
        dtype = np.dtype(self._engine.document["dtypes"][name])
        size = int(np.prod(shape)) * dtype.itemsize
        self._trt.cuda.check(address, size)
        memory = memoryview((ctypes.c_byte * size).from_address(address)).cast("B")
        return np.frombuffer(memory, dtype).reshape(shape)


class Context(BaseContext):
    def set_device_memory(self, address, size):
        self._activations = (address, size)


class OldContext(BaseContext):
    @property
    def device_memory(self):
        return self._activations[0]

    @device_memory.setter
    def device_memory(self, address):
        self._activations = (address, 1)
