"""Run graphs in ONNX Runtime.

`OrtSession` implements the Session protocol. The caller names the provider, and it is verified after
creation: ONNX Runtime falls back to the CPU if a provider cannot start, and here that is an error, never a
slower run. `LayerFile` reads the time of each node from ONNX Runtime's own profile. `CheckSession` runs a
graph on the CPU with its weights left in their file, for checks and not for speed.

No other module imports onnxruntime: `refdiff/__init__.py` disables its telemetry before it is loaded, and
this module once more after.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from refdiff.contracts.feeds import check_feeds, feeds_to_host, wanted_outputs
from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.contracts.optional import install_line
from refdiff.contracts.options import check_cores
from refdiff.contracts.session import Array, Feed, LayerTime, Measure, Timings
from refdiff.errors import EngineError

if os.environ["ORT_DISABLE_TELEMETRY"] == "1":  # Windows does not read it, nor an earlier import without it
    ort.disable_telemetry_events()

_FATAL_ONLY = 4
"""Severity of the sessions' own log: an error is an exception here, and is reported once."""
_KERNEL = "_kernel_time"
"""Suffix of the events that are a node's own work."""


class LayerFile:
    """ONNX Runtime's profile of one session, in a temporary folder.

    Args:
        options: options of the session, in which profiling is enabled.
        name: name of the graph.
    """

    def __init__(self, options: Any, name: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="refdiff-layers-", ignore_cleanup_errors=True)
        self._times: Sequence[LayerTime] | None = None
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / name)

    def read(self, session: Any) -> Sequence[LayerTime]:
        """Read what the session wrote; the first call ends its profiling.

        Raises:
            EngineError: the session is closed, or its file cannot be read.
        """
        if self._times is None:
            if session is None:
                raise EngineError("the session is closed; read its layers before")
            path = Path(session.end_profiling())
            try:
                events = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise EngineError(f"ONNX Runtime's profile {path} cannot be read: {error}") from error
            self._times = layer_times(events)
        return self._times

    def close(self) -> None:
        """Delete the file; calling it twice is fine."""
        self._folder.cleanup()


def layer_times(events: Sequence[Mapping[str, Any]]) -> Sequence[LayerTime]:
    """Sum the nodes' events, in the order they first ran.

    Args:
        events: Chrome trace events; times in µs.
    """
    found: dict[str, tuple[str, int, float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        operator, calls, ms = found.get(name, (str(event["args"].get("op_name", "")), 0, 0.0))
        found[name] = (operator, calls + 1, ms + float(event["dur"]) / 1e3)
    return tuple(
        LayerTime(name=name.removesuffix(_KERNEL), operator=operator, calls=calls, ms=ms)
        for name, (operator, calls, ms) in found.items()
    )


class CheckSession:
    """Runs a graph without a contract: no second layout of its weights, no arena.

    Measured on SD 1.5's UNet at 512 px: 0.6 GB of private memory instead of 5.5 GB.

    Args:
        model: the ONNX file, or a serialized graph.
        folder: folder of a serialized graph's weights.

    Raises:
        EngineError: ONNX Runtime cannot load the graph.
    """

    def __init__(self, model: Path | bytes, *, folder: Path | None = None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waits without the core
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder)
            )
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_cpu_mem_arena = False
        # In the graph's order, so that a node that only reads a tensor runs before the next tensor is made.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise EngineError(f"ONNX Runtime cannot load the graph: {_first_line(error)}") from error
        self.output_names = tuple(output.name for output in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; `outputs` None means all of them.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        names = self.output_names if outputs is None else tuple(outputs)
        try:
            return dict(zip(names, self._session.run(list(names), dict(feeds)), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise EngineError(f"the graph failed in ONNX Runtime: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


PROVIDERS: Mapping[str, tuple[str, dict[str, str]]] = {
    "ort-cpu": ("CPUExecutionProvider", {}),
    "ort-rounded": ("CPUExecutionProvider", {}),
    # TF32 keeps 10 bits of each factor: what was checked as fp32 stays fp32.
    "ort-cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
    # Nothing is cached: ONNX Runtime's engine cache does not tell one export from another.
    "ort-tensorrt": ("TensorrtExecutionProvider", {"trt_engine_cache_enable": "0"}),
}
"""Back-end name -> ONNX Runtime's provider and its options."""

_ALSO = {"ort-tensorrt": " and TensorRT"}

_SLOW_FUSIONS = ("SkipLayerNormFusion",)
"""Fusions that are slower on ONNX Runtime's CPU: sum and norm of SAM's decoder took 9.3 ms in one operator,
and 2.3 ms in two (1.32, the miniature, one thread)."""


def _unwatched() -> None:
    """Do nothing."""


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
        watch: Callable[[], None] = _unwatched,
    ) -> None:
        """Load a graph.

        Args:
            path: the ONNX file.
            graph: the contract it must fulfil.
            backend: a name of `PROVIDERS`. "ort-tensorrt" runs all of the graph or fails; "ort-rounded" is
                the CPU with every half-precision result rounded.
            threads: threads inside one operator; None leaves the choice to ONNX Runtime.
            spinning: keep these threads busy while they wait for each other.
            measure: "layers" records every node's time, which makes every run slower.
            watch: raises EngineError if the graph's files have changed; called when the graph is loaded, and
                before and after each run, because ONNX Runtime maps the weights.

        Raises:
            InputError: it is not one thread to as many as the machine has cores.
            EngineError: the provider is missing or did not start, or the file is not this graph.
            ModuleNotFoundError: "ort-rounded" rewrites graphs with onnx_ir, which is not installed.
        """
        self._graph = graph
        self._backend = backend
        options = session_options(threads, spinning=spinning)
        self._layers = LayerFile(options, graph.name) if measure == "layers" else None
        self._watch = watch
        self._session: Any = create_session(path, backend, options)
        watch()
        self._check_tensors(path)

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._graph

    @property
    def max_batch(self) -> int | None:
        """2 with TensorRT's provider, which builds an engine for each new size; else None: any number."""
        return 2 if self._backend == "ort-tensorrt" else None

    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: bool = False,  # noqa: ARG002 - this back-end returns host arrays
    ) -> dict[str, Array]:
        """Run once; see `refdiff.contracts.session.Session`."""
        check_feeds(self._graph, feeds)
        wanted = wanted_outputs(self._graph, outputs)
        if self._session is None:
            raise EngineError(f"{self._graph.name}: the session is closed; open it again")
        self._watch()
        try:
            results = self._session.run(wanted, feeds_to_host(feeds))
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise EngineError(f"{self._graph.name} failed in ONNX Runtime: {_first_line(error)}") from error
        self._watch()
        return dict(zip(wanted, results, strict=True))

    def timings(self) -> Timings:
        """See `refdiff.contracts.session.Session`; the first call ends the measurement of layers."""
        return Timings() if self._layers is None else Timings(layers=self._layers.read(self._session))

    def close(self) -> None:
        """Free the loaded graph."""
        self._session = None
        if self._layers is not None:
            self._layers.close()

    def _check_tensors(self, path: Path) -> None:
        """Refuse a file whose inputs and outputs are not the contract's; ONNX Runtime may not know a size."""
        for side in ("inputs", "outputs"):
            tensors, expected = getattr(self._session, f"get_{side}")(), getattr(self._graph, side)
            got = [(each.name, each.type, list(each.shape)) for each in tensors]
            fits = len(got) == len(expected) and all(map(_fits, got, expected))
            if not fits:
                raise EngineError(f"{path.name} has {side} {got}, expected {expected}; export again")


def _fits(got: tuple[str, str, list[Any]], expected: TensorSpec) -> bool:
    name, kind, shape = got
    if (name, kind) != (expected.name, _TYPES.get(expected.dtype)) or len(shape) != len(expected.shape):
        return False
    # A fixed size may be unknown to ONNX Runtime; one that the contract names must not be fixed.
    pairs = zip(shape, expected.shape, strict=True)
    return all(size == wanted or not isinstance(size, int) for size, wanted in pairs)


_TYPES = {"float32": "tensor(float)", "int32": "tensor(int32)"}


def session_options(threads: int | None, *, spinning: bool = False) -> Any:
    """Return ONNX Runtime's options for so many threads inside one operator.

    Raises:
        InputError: it is not one thread to as many as the machine has cores.
    """
    options = ort.SessionOptions()
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL_ONLY
    # Activations are freed after each run. SD 1.5's UNet at 512 px, one image: 3.8 GB of private memory
    # instead of 5.5 GB after two runs, 11.6 s of processor time instead of 11.5 s.
    options.enable_cpu_mem_arena = False
    if threads is not None:
        check_cores(threads, "threads")
        options.intra_op_num_threads = threads
    return options


def create_session(path: Path, backend: str, options: Any) -> Any:
    """Create ONNX Runtime's session of a graph, on the provider of the back-end and no other.

    Raises:
        EngineError: the provider is missing or did not start, or ONNX Runtime cannot load the graph.
    """
    provider, _ = PROVIDERS[backend]
    if provider not in ort.get_available_providers():
        have = ", ".join(ort.get_available_providers())
        raise EngineError(
            f"back-end {backend} needs {provider}, this onnxruntime has: {have}; "
            f"{install_line('gpu')} on a machine with CUDA{_ALSO.get(backend, '')}, or use ort-cpu"
        )
    session = _load(path, backend, options)
    started = session.get_providers()[0]
    if started != provider:
        raise EngineError(
            f"{path.name}: requested {provider}, ONNX Runtime started {started}; "
            "fix the CUDA installation, or use ort-cpu"
        )
    session.disable_fallback()
    return session


def _load(path: Path, backend: str, options: Any) -> Any:
    if backend == "ort-tensorrt":  # by default it runs unsupported nodes on the CPU
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        model, options = _source(path, backend, options)
        return ort.InferenceSession(
            model,
            sess_options=options,
            providers=[PROVIDERS[backend]],
            enable_fallback=0,  # else it prints a block, and starts another provider, which is refused below
            disabled_optimizers=_SLOW_FUSIONS if PROVIDERS[backend][0] == "CPUExecutionProvider" else None,
        )
    except ModuleNotFoundError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        raise EngineError(f"ONNX Runtime cannot load {path}: {_with_cure(_first_line(error))}") from error


def _with_cure(fault: str) -> str:
    """Complete the errors of ONNX Runtime that the user can do something about."""
    if "NOT_IMPLEMENTED" in fault:
        return f"{fault}; use the back-end ort-rounded"
    if "pthread_create" in fault:
        return "the system allows no more threads; use fewer (--threads 1) or raise the limit (ulimit -u)"
    return fault


def _source(path: Path, backend: str, options: Any) -> tuple[Path | bytes, Any]:
    """Return the file to load, or for "ort-rounded" the rewritten graph, its weights left in place."""
    if backend != "ort-rounded":
        return path, options
    from refdiff.passes.round_half import rounded_model

    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return rounded_model(path), options
