"""The building half of a TensorRT, in memory: the calls that refdiff makes, without a library or a GPU.

`fake_tensorrt` makes the module of one version. A plan's bytes are JSON of the builder's settings, so
that a test can read them there.
"""

import enum
import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from refdiff.engines.trt.flavour import Flavour
from tests.support.plans import CONTRACT


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


@dataclass
class Complaint:
    """An error of the parser."""

    node: str = ""
    operator: str = ""
    text: str = "Assertion failed"

    def desc(self) -> str:
        return self.text

    def node_name(self) -> str:
        return self.node

    def node_operator(self) -> str:
        return self.operator


class OldComplaint:
    """Of a version that does not say which node it was."""

    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str = "FLOAT"


@dataclass
class Layer:
    type: str
    name: str = ""
    inputs: Sequence[Tensor] = ()
    outputs: Sequence[Tensor] = ()
    resize_mode: str = "LINEAR"

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


@dataclass
class Network:
    flags: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


class TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+"


class Config:
    def __init__(self, refused: Sequence[str]) -> None:
        self.flags = {"TF32"}
        self.workspace: int | None = None
        self.profiles: list[dict[str, Any]] = []
        self.capabilities: list[str] = []
        self.hardware_compatibility_level = "NONE"
        self.profiling_verbosity = "LAYER_NAMES_ONLY"
        self.num_compute_capabilities = 0
        self.progress_monitor: Any = None
        self.cache: TimingCache | None = None
        self._refused = refused

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        assert pool == "WORKSPACE"
        self.workspace = size

    def set_compute_capability(self, capability: str, index: int) -> bool:
        assert index == len(self.capabilities) < self.num_compute_capabilities
        self.capabilities.append(capability)
        return capability not in self._refused

    def add_optimization_profile(self, profile: "Profile") -> int:
        if "profile" in self._refused:
            return -1
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> TimingCache:
        return TimingCache(data)

    def set_timing_cache(self, cache: TimingCache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return b"foreign" not in cache.data

    def get_timing_cache(self) -> TimingCache:
        assert self.cache is not None
        return self.cache


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: Sequence[int]) -> None:
        self.shapes[name] = [list(shape) for shape in shapes]


@dataclass
class Behaviour:
    """What the fake does; a test sets it, and reads `networks`."""

    complaints: Sequence[Any] = ()
    layers: Sequence[Layer] = ()
    inputs: Sequence[Tensor] | None = None
    """None: those of the graph contract, by the file's name."""
    silent_refusal: bool = False
    """The parser says no without a reason."""
    says: Sequence[tuple[Severity, str]] = ((Severity.INFO, "Total Activation Memory: 4096 bytes"),)
    """What the builder logs."""
    fails: bool = False
    """The builder returns nothing."""
    cannot_start: bool = False
    """There is no builder at all, as without a driver."""
    streams: bool = True
    """The builder can write a plan in parts."""
    steps: int = 3
    on_step: Callable[[int], None] = lambda step: None
    refused: Sequence[str] = ()
    plan_bytes: int = 0
    """Of padding behind the plan."""
    plan: Callable[[Path, "Config"], bytes] | None = None
    """The plan of a file, where it is to be run; None: the builder's settings."""
    inspected: str | None = None
    """What the engine inspector says; None: no plan can be loaded here."""
    networks: list[Network] = field(default_factory=list)
    parsed: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)


def fake_tensorrt(
    name: str = "tensorrt",
    version: str = "10.3.0",
    *,
    without: Sequence[str] = (),
    behaviour: Behaviour | None = None,
) -> Any:
    """A module of one version.

    Args:
        name: of the package.
        version: that it says it is.
        without: attributes it does not have: of the module, or of one of its names, "BuilderFlag.FP16".
        behaviour: what building does.
    """
    acts = behaviour or Behaviour()
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, loader=None)
    for key, value in _contents(acts, version).items():
        setattr(module, key, value)
    for path in without:
        owner, _, attribute = path.rpartition(".")
        delattr(getattr(module, owner) if owner else module, attribute)
    return module


def fake_rtx(version: str = "1.7.1", *, behaviour: Behaviour | None = None) -> Any:
    """TensorRT-RTX, which builds for GPUs by name."""
    module = fake_tensorrt("tensorrt_rtx", version, behaviour=behaviour)
    module.ComputeCapability = _names("NONE", "CURRENT", "SM80", "SM86", "SM89", "SM120")
    module.IBuilderConfig = Config
    return module


def fake_flavour(module: Any) -> Flavour:
    return Flavour(name=module.__name__.replace("_", "-"), module=module)


def _names(*names: str) -> Any:
    return type("Names", (), {name: name for name in names})


class ILogger:
    INFO, ERROR = Severity.INFO, Severity.ERROR


class IProgressMonitor:
    pass


class IStreamWriter:
    pass


class Parser:
    def __init__(self, acts: Behaviour, network: Network, log: Any) -> None:
        self._acts, self._network, self._log = acts, network, log
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        acts = self._acts
        acts.parsed.append(path)
        self._network.inputs = list(_inputs(acts, Path(path)))
        self._network.layers = list(acts.layers)
        self.num_errors = len(acts.complaints)
        for complaint in acts.complaints:
            self._log.log(Severity.ERROR, complaint.desc())
        return not acts.complaints and not acts.silent_refusal

    def parse(self, model: bytes, path: str) -> bool:
        assert model
        return self.parse_from_file(path)

    def get_error(self, index: int) -> Any:
        return self._acts.complaints[index]


class OldBuilder:
    """Hands out the plan in memory."""

    def __init__(self, acts: Behaviour, log: Any) -> None:
        self._acts, self._log = acts, log
        if acts.cannot_start:
            log.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("factory function returned nullptr")

    def create_network(self, flags: int) -> Network:
        self._acts.networks.append(Network(flags))
        return self._acts.networks[-1]

    def create_builder_config(self) -> Config:
        return Config(self._acts.refused)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        acts = self._acts
        acts.threads.add(threading.current_thread().name)
        for severity, message in acts.says:
            self._log.log(severity, message)
        if not _goes_on(acts, config.progress_monitor):
            self._log.log(Severity.ERROR, "Build canceled by user")
            return None
        if acts.fails:
            return None
        if acts.plan is not None:
            return acts.plan(Path(acts.parsed[-1]), config)
        return _plan(network, config) + b" " * acts.plan_bytes


class StreamingBuilder(OldBuilder):
    """Writes the plan in parts."""

    def build_serialized_network_to_stream(self, network: Network, config: Config, writer: Any) -> bool:
        plan = self.build_serialized_network(network, config)
        if plan is None:
            return False
        half = len(plan) // 2
        return all(writer.write(part) == len(part) for part in (plan[:half], plan[half:]))


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, acts: Behaviour, log: Any) -> None:
        self._acts, self._log = acts, log

    def deserialize_cuda_engine(self, plan: Any) -> "Inspected | None":
        if self._acts.inspected is None:
            self._log.log(Severity.ERROR, "CUDA driver version is insufficient")
            return None
        assert json.loads(bytes(plan))["network_flags"] is not None
        return Inspected(self._acts.inspected)


@dataclass
class Inspected:
    """An engine, and its inspector."""

    says: str

    def create_engine_inspector(self) -> "Inspected":
        return self

    def get_engine_information(self, form: str) -> str:
        assert form == "JSON"
        return self.says


def _contents(acts: Behaviour, version: str) -> Mapping[str, Any]:
    return {
        "__version__": version,
        "ILogger": ILogger,
        "IProgressMonitor": IProgressMonitor,
        "IStreamWriter": IStreamWriter,
        "IBuilderConfig": type("IBuilderConfig", (), {}),
        "OnnxParser": functools.partial(Parser, acts),
        "Builder": functools.partial(StreamingBuilder if acts.streams else OldBuilder, acts),
        "BuilderFlag": _names("TF32", "FP16", "REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE"),
        "NetworkDefinitionCreationFlag": type("Flag", (), {"STRONGLY_TYPED": 1}),
        "HardwareCompatibilityLevel": _names("NONE", "AMPERE_PLUS"),
        "MemoryPoolType": _names("WORKSPACE"),
        "ProfilingVerbosity": _names("LAYER_NAMES_ONLY", "DETAILED"),
        "LayerInformationFormat": _names("ONELINE", "JSON"),
        "Runtime": functools.partial(Runtime, acts),
    }


def _inputs(acts: Behaviour, path: Path) -> Sequence[Tensor]:
    if acts.inputs is not None:
        return acts.inputs
    return [
        Tensor(tensor.name, tuple(size if isinstance(size, int) else -1 for size in tensor.shape))
        for tensor in CONTRACT[path.stem].inputs
    ]


def _goes_on(acts: Behaviour, monitor: Any) -> bool:
    """Take the steps of a build; a monitor may end it."""
    if monitor is not None:
        monitor.phase_start("Building engine", None, acts.steps)
    going = True
    for step in range(acts.steps):
        acts.on_step(step)
        going = monitor is None or monitor.step_complete("Building engine", step)
        if not going:
            break
    if monitor is not None:
        monitor.phase_finish("Building engine")
    return going


def _plan(network: Network, config: Config) -> bytes:
    settings = {
        "network_flags": network.flags,
        "flags": sorted(config.flags),
        "workspace": config.workspace,
        "profiles": config.profiles,
        "capabilities": config.capabilities,
        "hardware": config.hardware_compatibility_level,
        "verbosity": config.profiling_verbosity,
        "cache": None if config.cache is None else config.cache.data.decode(),
    }
    return json.dumps(settings).encode()
