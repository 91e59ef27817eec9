"""Run graphs in ONNX Runtime.

`OrtSession` implements the Session protocol. The caller names the provider, and it is verified after
creation: ONNX Runtime falls back to the CPU if a provider cannot start, and here that is an error, never a
slower run.

This module and `check_session` alone import onnxruntime: `refdiff/__init__.py` disables its telemetry before
it is loaded, and this module once more after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import WeakSet

import onnxruntime as ort

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.optional import install_line
from refdiff.contracts.options import check_cores
from refdiff.contracts.session import (
    Feed,
    Measure,
    Timings,
    check_feeds,
    feeds_to_host,
    wanted_outputs,
)
from refdiff.engines.ort_layers import LayerFile
from refdiff.engines.ort_tensors import DeviceTensor, check_tensors, run_bound
from refdiff.errors import EngineError

if os.environ["ORT_DISABLE_TELEMETRY"] == "1":  # Windows does not read it, nor an earlier import without it
    ort.disable_telemetry_events()

FATAL_ONLY = 4
"""Severity of the sessions' own log: an error is an exception here, and is reported once."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


PROVIDERS: Mapping[str, tuple[str, dict[str, str]]] = {
    "ort-cpu": ("CPUExecutionProvider", {}),
    "ort-rounded": ("CPUExecutionProvider", {}),
    # TF32 keeps 10 bits of each factor: what was checked as fp32 stays fp32. Convolutions are channels-last,
    # which tensor cores read without a copy, and cuDNN measures its algorithms when a graph first runs.
    "ort-cuda": (
        "CUDAExecutionProvider",
        {"use_tf32": "0", "prefer_nhwc": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"},
    ),
    # Nothing is cached: ONNX Runtime's engine cache does not tell one export from another.
    "ort-tensorrt": ("TensorrtExecutionProvider", {"trt_engine_cache_enable": "0"}),
    "ort-rtx": ("NvTensorRTRTXExecutionProvider", {}),
}
"""Back-end name -> ONNX Runtime's provider and its options."""


def _is_on_cpu(backend: str) -> bool:
    """Return whether a back-end is ONNX Runtime's CPU."""
    return PROVIDERS[backend][0] == "CPUExecutionProvider"


_ON_DEVICE = {"ort-cuda": "cuda"}
"""Back-end -> ONNX Runtime's name of the device on which its outputs can stay."""

RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""Package of the library that provides "ort-rtx"; it brings its own TensorRT-RTX."""

_WHOLE_OR_NONE = ("ort-tensorrt", "ort-rtx")
"""Back-ends that by default leave nodes to the CPU, and build an engine for each new size."""

_SLOW_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Fusions that are slower on ONNX Runtime's CPU: with one thread, sum and norm of `mini`'s `sam_decoder`
took 9.3 ms in one operator, 2.3 ms in two; its `sam_masks` 4.9 ms with biases in GELUs, 4.3 ms without."""

_IN_ARENA = ("sam_decoder", "sam_masks")
"""Graphs that run many times for an image with large tensors: on the CPU they share one arena."""

_USE_ARENA: WeakSet[OrtSession] = WeakSet()
"""Open sessions that share the arena."""


def _share_arena() -> None:
    """Replace the arena by a new one; the memory of the old one is returned with its last session."""
    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))


class OrtSession:
    """One ONNX graph, loaded."""

    def __init__(
        self,
        path: Path,
        graph: GraphSpec,
        *,
        backend: str = "ort-cpu",
        threads: int | None = None,
        spinning: bool = False,
        measure: Measure | None = None,
        watch: Callable[[], None] = lambda: None,
        form: bytes | None = None,
        runtime: Any = ort,
    ) -> None:
        """Load a graph.

        Args:
            path: the ONNX file.
            graph: the contract it must fulfil.
            backend: a name of `PROVIDERS`. "ort-tensorrt" and "ort-rtx" run all of the graph or fail;
                "ort-rounded" is the CPU with every half-precision result rounded.
            threads: threads inside one operator; None leaves the choice to ONNX Runtime.
            spinning: keep these threads busy while they wait for each other; False: for 50 µs at most.
            measure: "layers" records every node's time, which makes every run slower.
            watch: raises EngineError if the graph's files have changed; called when the graph is loaded, and
                before and after each run, because ONNX Runtime maps the weights.
            form: what is run in place of the file, with the same data file (`cuda_forms`).
            runtime: the module `onnxruntime`.

        Raises:
            InputError: it is not one thread to as many as the machine has cores.
            EngineError: the provider is missing or did not start, or the file is not this graph.
            ModuleNotFoundError: a package is not installed: onnx_ir, with which "ort-rounded" rewrites
                graphs, or the plugin of "ort-rtx".
        """
        self._graph = graph
        self._backend = backend
        self._device = _ON_DEVICE.get(backend)
        options = session_options(threads, spinning=spinning)
        self._in_arena = _is_on_cpu(backend) and graph.name in _IN_ARENA
        if self._in_arena:
            if not _USE_ARENA:
                _share_arena()
            options.enable_cpu_mem_arena = True
            options.add_session_config_entry("session.use_env_allocators", "1")
        self._layers = LayerFile(options, graph.name) if measure == "layers" else None
        self._watch = watch
        self._session: Any = create_session(path, backend, options, runtime, form=form)
        if self._in_arena:
            _USE_ARENA.add(self)
        watch()
        check_tensors(self._session, graph, path.name)

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._graph

    @property
    def max_batch(self) -> int | None:
        """2 with a provider that builds an engine for each new size; else None: any number."""
        return 2 if self._backend in _WHOLE_OR_NONE else None

    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: bool = False,
    ) -> dict[str, Any]:
        """Run once; see `refdiff.contracts.session.Session`. "ort-cuda" alone keeps outputs on its device."""
        check_feeds(self._graph, feeds)
        wanted = wanted_outputs(self._graph, outputs)
        if self._session is None:
            raise EngineError(f"{self._graph.name}: the session is closed; open it again")
        keep = keep_on_device and self._device is not None
        self._watch()
        try:
            if keep or any(isinstance(feed, DeviceTensor) for feed in feeds.values()):
                results = run_bound(self._session, feeds, wanted, device=self._device or "cpu", keep=keep)
            else:
                results = self._session.run(wanted, feeds_to_host(feeds))
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise EngineError(f"{self._graph.name} failed in ONNX Runtime: {first_line(error)}") from error
        self._watch()
        return dict(zip(wanted, results, strict=True))

    def timings(self) -> Timings:
        """See `refdiff.contracts.session.Session`; the first call ends the measurement of layers."""
        return Timings() if self._layers is None else Timings(layers=self._layers.read(self._session))

    def close(self) -> None:
        """Free the loaded graph, and with the last one in the arena the arena's memory."""
        self._session = None
        if self in _USE_ARENA:
            _USE_ARENA.remove(self)
            if not _USE_ARENA:
                _share_arena()
        if self._layers is not None:
            self._layers.close()


_SHORT_SPIN = ("session.intra_op.spin_duration_us", "50")
"""Threads that wait for the next operator stay awake for so long, and leave the core after."""

_NO_SPIN = ("session.intra_op.allow_spinning", "0")

_VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])

_HAS_SHORT_SPIN = (1, 26)
"""First version whose threads can spin for a given time (onnxruntime#27916): before, for 16 ms and more."""


def session_options(
    threads: int | None, *, spinning: bool = False, version: tuple[int, ...] = _VERSION
) -> Any:
    """Return the options of ONNX Runtime, in this version, for so many threads inside one operator.

    Raises:
        InputError: it is not one thread to as many as the machine has cores.
    """
    options = ort.SessionOptions()
    if not spinning:
        options.add_session_config_entry(*(_SHORT_SPIN if version >= _HAS_SHORT_SPIN else _NO_SPIN))
    options.log_severity_level = FATAL_ONLY
    options.enable_cpu_mem_arena = False  # activations are freed after each run
    if threads is not None:
        check_cores(threads, "threads")
        options.intra_op_num_threads = threads
    return options


def create_session(
    path: Path, backend: str, options: Any, runtime: Any = ort, *, form: bytes | None = None
) -> Any:
    """Create ONNX Runtime's session of a graph, or of a form of it, on the back-end's provider and no other.

    Raises:
        EngineError: the provider is missing or did not start, or ONNX Runtime cannot load the graph.
        ModuleNotFoundError: a package is not installed; see `OrtSession`.
    """
    provider, _ = PROVIDERS[backend]
    if backend == "ort-rtx":
        options.add_provider_for_devices(_rtx_devices(provider, runtime), {})
    elif provider not in runtime.get_available_providers():
        have = ", ".join(runtime.get_available_providers())
        also = " and TensorRT" if backend == "ort-tensorrt" else ""
        raise EngineError(
            f"back-end {backend} needs {provider}, this onnxruntime has: {have}; "
            f"{install_line('gpu')} on a machine with CUDA{also}, or use ort-cpu"
        )
    session = _load(path, backend, options, runtime, form)
    started = session.get_providers()[0]
    if started != provider:
        raise EngineError(
            f"{path.name}: requested {provider}, ONNX Runtime started {started}; "
            "fix the CUDA installation, or use ort-cpu"
        )
    session.disable_fallback()
    return session


def load_rtx_plugin() -> Any:
    """Import the package of "ort-rtx", which loads its TensorRT-RTX.

    The plugin has no option for TF32. The variable that turns it off for NVIDIA's libraries is set.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # read when the libraries are loaded
    return import_module(RTX_PLUGIN)


def _rtx_devices(provider: str, runtime: Any) -> Sequence[Any]:
    """Return the first GPU that the plugin supports; the plugin is registered with ONNX Runtime once.

    Raises:
        EngineError: it cannot be loaded, or supports no GPU of this machine.
        ModuleNotFoundError: it is not installed.
    """
    plugin = load_rtx_plugin()
    if not _offered(provider, runtime):
        try:
            runtime.register_execution_provider_library(provider, plugin.get_library_path())
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise EngineError(
                f"ONNX Runtime cannot load the plugin of ort-rtx: {first_line(error)}; it needs NVIDIA's "
                f"driver with CUDA 13 and an onnxruntime of 1.24 or later ({install_line('ort-rtx')})"
            ) from error
    devices = _offered(provider, runtime)
    if not devices:
        raise EngineError("the plugin of ort-rtx supports no GPU here; it needs an RTX GPU, Ampere or later")
    return devices[:1]


def _offered(provider: str, runtime: Any) -> list[Any]:
    return [device for device in runtime.get_ep_devices() if device.ep_name == provider]


def _load(path: Path, backend: str, options: Any, runtime: Any, form: bytes | None) -> Any:
    if backend in _WHOLE_OR_NONE:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        model = form or _source(path, backend)
        if isinstance(model, bytes):  # it reads the weights of the graph in the file
            entry = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(entry, str(path.parent))
        try:
            return _start(model, backend, options, runtime, PROVIDERS[backend])
        except Exception as error:  # a CUDA provider may be built without channels-last convolutions
            if "does not support NHWC" not in str(error):
                raise
        name, settings = PROVIDERS[backend]
        others = {key: value for key, value in settings.items() if key != "prefer_nhwc"}
        return _start(model, backend, options, runtime, (name, others))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        raise EngineError(
            f"ONNX Runtime cannot load {path}: {_with_cure(first_line(error), backend)}"
        ) from error


def _start(
    model: Path | bytes, backend: str, options: Any, runtime: Any, provider: tuple[str, dict[str, str]]
) -> Any:
    return runtime.InferenceSession(
        model,
        sess_options=options,
        providers=None if backend == "ort-rtx" else [provider],  # the options have a plugin's
        enable_fallback=0,  # else it prints a block, and starts another provider, which is refused
        disabled_optimizers=_SLOW_FUSIONS if _is_on_cpu(backend) else None,
    )


def _with_cure(fault: str, backend: str) -> str:
    """Complete the errors of ONNX Runtime that the user can do something about."""
    if "NOT_IMPLEMENTED" in fault and _is_on_cpu(backend):
        return f"{fault}; use the back-end ort-rounded"
    if "pthread_create" in fault:
        return "the system allows no more threads; use fewer (--threads 1) or raise the limit (ulimit -u)"
    return fault


def _source(path: Path, backend: str) -> Path | bytes:
    """Return the file to load, or for "ort-rounded" the rewritten graph, its weights left in place."""
    if backend != "ort-rounded":
        return path
    from refdiff.passes.round_half import rounded_model

    return rounded_model(path)
