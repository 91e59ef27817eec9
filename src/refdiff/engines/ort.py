"""ONNX Runtime behind the Session protocol.

The provider is named by the caller and verified after creation: ONNX Runtime falls back to the CPU when a
provider cannot start, and that is an error here, never a slower run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from refdiff.contracts.feeds import check_feeds, wanted_outputs
from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Array, LayerTime, Measure
from refdiff.engines.ort_layers import LayerFile
from refdiff.errors import EngineError, InputError

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
"""Rewrites that ONNX Runtime's CPU runs slower than what they replace: the sum and norm of SAM's decoder in
one operator took 9.3 ms, and 2.3 ms in two (1.32, the miniature, one thread)."""

_ERRORS_ONLY = 3
"""ONNX Runtime's log level; what matters below it is checked here."""


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
    ) -> None:
        """Load a graph.

        Args:
            path: the ONNX file.
            graph: the contract it must fulfil.
            backend: a name of `PROVIDERS`. "ort-tensorrt" runs all of the graph or nothing; "ort-rounded" is
                the CPU, every half-precision result rounded.
            threads: threads inside one operator; None leaves the choice to ONNX Runtime.
            spinning: whether these threads stay busy while they wait for each other's next piece of work.
            measure: "layers" has ONNX Runtime write down every node's time, which makes every run slower.

        Raises:
            InputError: the thread count is not positive.
            EngineError: the provider is absent, did not start, or the file is not this graph.
            ModuleNotFoundError: "ort-rounded" rewrites graphs with onnx_ir, which is not installed.
        """
        self._graph = graph
        self._backend = backend
        options = session_options(threads, spinning=spinning)
        self._layers = LayerFile(options, graph.name) if measure == "layers" else None
        self._session: Any = create_session(path, backend, options)
        self._check_names(path)

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._graph

    @property
    def most_rows(self) -> int | None:
        """Any number; of TensorRT's provider, which builds an engine for each new size, one phrase's."""
        return 2 if self._backend == "ort-tensorrt" else None

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; see `refdiff.contracts.session.Session`."""
        check_feeds(self._graph, feeds)
        wanted = wanted_outputs(self._graph, outputs)
        if self._session is None:
            raise EngineError(f"{self._graph.name}: the session is closed; open it again")
        try:
            results = self._session.run(wanted, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise EngineError(f"{self._graph.name} failed in ONNX Runtime: {_first_line(error)}") from error
        return dict(zip(wanted, results, strict=True))

    def layers(self) -> Sequence[LayerTime]:
        """See `refdiff.contracts.session.LayeredSession`; nothing is added by runs that follow."""
        return () if self._layers is None else self._layers.read(self._session)

    def close(self) -> None:
        """Free the loaded graph."""
        self._session = None
        if self._layers is not None:
            self._layers.close()

    def _check_names(self, path: Path) -> None:
        got = tuple(
            tuple(t.name for t in side) for side in (self._session.get_inputs(), self._session.get_outputs())
        )
        expected = (self._graph.input_names, self._graph.output_names)
        if got != expected:
            raise EngineError(f"{path.name} has inputs and outputs {got}, expected {expected}; export again")


def session_options(threads: int | None, *, spinning: bool = False) -> Any:
    """ONNX Runtime's options for so many threads inside one operator.

    Raises:
        InputError: the thread count is not positive.
    """
    options = ort.SessionOptions()
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _ERRORS_ONLY
    # Activations go back to the system after each run. SD 1.5's UNet at 512 px, one picture: 3.8 GB of
    # private memory instead of 5.5 GB after two runs, 11.6 s of processor time instead of 11.5 s.
    options.enable_cpu_mem_arena = False
    if threads is not None:
        if threads < 1:
            raise InputError(f"got {threads} threads, expected 1 or more")
        options.intra_op_num_threads = threads
    return options


def create_session(path: Path, backend: str, options: Any) -> Any:
    """ONNX Runtime's own session of a graph, on the provider of the back-end and no other.

    Raises:
        EngineError: the provider is absent or did not start, or ONNX Runtime cannot load the graph.
    """
    provider, _ = PROVIDERS[backend]
    if provider not in ort.get_available_providers():
        have = ", ".join(ort.get_available_providers())
        raise EngineError(
            f"back-end {backend} needs {provider}, this onnxruntime has: {have}; "
            f"pip install 'refdiff[gpu]' on a machine with CUDA{_ALSO.get(backend, '')}, or use ort-cpu"
        )
    session = _loaded(path, backend, options)
    started = session.get_providers()[0]
    if started != provider:
        raise EngineError(
            f"{path.name}: asked for {provider}, ONNX Runtime started {started}; "
            "mend the CUDA installation, or use ort-cpu"
        )
    session.disable_fallback()
    return session


def _loaded(path: Path, backend: str, options: Any) -> Any:
    if backend == "ort-tensorrt":  # it hands what it cannot do to the CPU, unless it is told not to
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        model, options = _source(path, backend, options)
        return ort.InferenceSession(
            model,
            sess_options=options,
            providers=[PROVIDERS[backend]],
            disabled_optimizers=_SLOW_FUSIONS if PROVIDERS[backend][0] == "CPUExecutionProvider" else None,
        )
    except ModuleNotFoundError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        raise EngineError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error


def _source(path: Path, backend: str, options: Any) -> tuple[Path | bytes, Any]:
    """The file to load, or for "ort-rounded" the rewritten graph, its weights left in place."""
    if backend != "ort-rounded":
        return path, options
    from refdiff.engines.rounded import rounded_model

    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return rounded_model(path), options


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
