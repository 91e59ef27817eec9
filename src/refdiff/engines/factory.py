"""Open a bundle's graphs with a back-end chosen by name; the only module that imports back-ends, and late."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.optional import install_line
from refdiff.contracts.session import Measure, Session, SessionFactory
from refdiff.errors import BundleError, EngineError, InputError, MissingDependencyError

if TYPE_CHECKING:
    from refdiff.engines.check_session import CheckSession
    from refdiff.engines.cuda_forms import CudaForms

_LOGGER = logging.getLogger(__name__)

Backend = Literal[
    "auto", "ort-cpu", "ort-cuda", "ort-tensorrt", "ort-rtx", "ort-rounded", "tensorrt", "tensorrt-rtx"
]
BACKENDS: tuple[str, ...] = get_args(Backend)

DRIVER_SIGNS = (
    Path("/proc/driver/nvidia/version"),
    Path("/dev/nvidiactl"),
    Path("/dev/nvhost-gpu"),
    Path("/dev/nvmap"),
)
"""Files of an NVIDIA driver: the first two on a PC, the others on a Jetson."""

_NOT_ON_CPU = ("bf16", "fp8")
"""Precisions that ONNX Runtime's CPU lacks; "ort-rounded" computes them there as a device does."""


class BackendSessions(SessionFactory, Protocol):
    """A session factory with the name of its back-end."""

    backend: str
    """Name of the back-end."""
    reason: str
    """Reason for choosing it."""


class OrtSessions:
    """Opens a bundle's graphs in ONNX Runtime; `reason` says why `backend` was chosen."""

    def __init__(
        self,
        bundle: Bundle,
        module: ModuleType,
        *,
        backend: str,
        reason: str,
        threads: int | None,
        spinning: bool = False,
        measure: Measure | None = None,
    ) -> None:
        self._bundle = bundle
        self._module = module
        self._threads = threads
        self._spinning = spinning
        self._measure = measure
        self._contract = graph_contract(bundle.spec)
        self._forms: CudaForms | None = None
        self._open: dict[str, Session] = {}
        self.backend = backend
        self.reason = reason

    def open(self, name: str) -> Session:
        """Return the session of graph `name`, opened on the first call and kept.

        Raises:
            BundleError: the bundle has no such graph.
            EngineError: the graph does not load.
        """
        if name not in self._open:
            path = self._bundle.graph_path(name)
            if name not in self._contract:
                raise BundleError(
                    f"{path} is of graph {name!r}, which this refdiff does not know; upgrade refdiff"
                )
            begin = time.perf_counter()
            on_cuda = "CUDAExecutionProvider" in self._module.ort.get_available_providers()
            use_form = self.backend == "ort-cuda" and on_cuda
            self._open[name] = self._with_form(name) if use_form else self._session(name, None, self._measure)
            _LOGGER.debug("loaded %s in %.0f ms", path, 1e3 * (time.perf_counter() - begin))
        return self._open[name]

    def _session(self, name: str, form: bytes | None, measure: Measure | None) -> Session:
        session: Session = self._module.OrtSession(
            self._bundle.graph_path(name),
            self._contract[name],
            backend=self.backend,
            threads=self._threads,
            spinning=self._spinning,
            measure=measure,
            watch=partial(self._bundle.check_unchanged, name),
            form=form,
        )
        return session

    def _with_form(self, name: str) -> Session:
        """Open the form of a graph if it gives the golden record on this device; else the plain graph."""
        from refdiff.engines.cuda_forms import CudaForms, disagreement

        self._forms = self._forms or CudaForms(self._bundle, self._module.ort.__version__)
        form, complaint = self._forms.load(name), None
        if form is not None:
            try:
                tried = self._session(name, form, None)
            except EngineError as error:
                complaint = str(error)
            else:
                complaint = disagreement(self._bundle, name, tried)
                tried.close()
        session = self._session(name, None if complaint else form, self._measure)
        if complaint:  # not before: where the plain graph does not load either, that is the fault
            _LOGGER.warning("%s: ort-cuda runs the plain graph, because its form failed: %s", name, complaint)
        return session

    def close(self) -> None:
        """Close every session that was opened."""
        for session in self._open.values():
            session.close()
        self._open.clear()


def has_driver(signs: Iterable[Path] = DRIVER_SIGNS) -> bool:
    """Return whether this machine has an NVIDIA driver, which shows by these files."""
    return any(sign.exists() for sign in signs)


def open_sessions(
    bundle: Bundle,
    *,
    backend: str = "auto",
    threads: int | None = None,
    memory: str | None = None,
    spinning: bool = False,
    measure: Measure | None = None,
    has_driver: Callable[[], bool] = has_driver,
) -> BackendSessions:
    """Make a session factory for a bundle; no graph is loaded yet.

    Args:
        bundle: a verified bundle.
        backend: one of `BACKENDS`; "auto" takes the bundle's plans if they fit this machine, else the GPU if
            ONNX Runtime can use it, else the CPU, for bf16 and fp8 with "ort-rounded".
        threads: CPU threads inside one operator; None leaves the choice to the back-end.
        memory: device memory for plans: a budget such as "8GB", or "resident", "shared" or "staged"; None:
            the fastest that fits.
        spinning: keep ONNX Runtime's threads busy while they wait for each other; False leaves the cores to
            other work of this process.
        measure: what the sessions measure; None: nothing.
        has_driver: whether there is an NVIDIA driver; "auto" asks.

    Raises:
        InputError: no such back-end, or a memory that cannot be read or that the back-end does not support.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a TensorRT back-end was requested, and the bundle has no plan that fits.
    """
    # Late: a program that only names a bundle needs none of it.
    from refdiff.engines.trt.open import TENSORRT, open_plans, prefer_plans

    if backend not in BACKENDS:
        raise InputError(f"unknown back-end {backend!r}; choose one of: {', '.join(BACKENDS)}")
    if backend in TENSORRT:
        return open_plans(bundle, backend, reason="asked for", memory=memory, measure=measure)
    why_not = ""
    if backend == "auto":
        plans, why_not = prefer_plans(bundle, has_driver=has_driver(), memory=memory, measure=measure)
        if plans is not None:
            return plans
    if memory is not None:
        raise InputError(
            f"memory {memory!r} is for plans, expected one of the back-ends {', '.join(TENSORRT)}; "
            f"leave it out{f' ({why_not})' if why_not else ''}"
        )
    module = import_ort(backend)
    chosen, reason = backend, "asked for"
    if backend == "auto":
        chosen, reason = _choose(module, bundle.manifest.precision, has_driver=has_driver())
    if chosen != backend:
        import_ort(chosen)
    reason = f"{reason}; {why_not}" if why_not else reason
    return OrtSessions(
        bundle,
        module,
        backend=chosen,
        reason=reason,
        threads=threads,
        spinning=spinning,
        measure=measure,
    )


def _choose(module: ModuleType, precision: str, *, has_driver: bool) -> tuple[str, str]:
    backend, reason = _choose_processor(module, has_driver=has_driver)
    if backend == "ort-cpu" and precision in _NOT_ON_CPU:
        return "ort-rounded", f"ONNX Runtime's CPU has no operators in {precision}, and {reason}"
    return backend, reason


def _choose_processor(module: ModuleType, *, has_driver: bool) -> tuple[str, str]:
    if "CUDAExecutionProvider" not in module.ort.get_available_providers():
        return "ort-cpu", "this onnxruntime has no CUDA provider"
    if not has_driver:
        return "ort-cpu", "onnxruntime has a CUDA provider, but this machine has no NVIDIA driver"
    return "ort-cuda", "onnxruntime has a CUDA provider and this machine an NVIDIA driver"


def import_ort(backend: str) -> ModuleType:
    """Import `refdiff.engines.ort` and what else the back-end needs.

    Only the absence of a named package becomes an error of ours; a broken installation keeps its traceback.

    Raises:
        MissingDependencyError: a package is not installed.
    """
    try:
        from refdiff.engines import ort

        if backend == "ort-rounded":
            import refdiff.passes.round_half  # noqa: F401 - it reports a package that is missing
        if backend == "ort-rtx":
            ort.load_rtx_plugin()
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        extra = _EXTRA_OF.get(backend, _EXTRAS[error.name])
        raise MissingDependencyError(
            f"back-end {backend} needs {error.name}, which is not installed; {install_line(extra)}"
        ) from error
    return ort


_EXTRA_OF = {"ort-cuda": "gpu", "ort-tensorrt": "gpu", "ort-rtx": "ort-rtx"}
"""Back-end -> the extra that installs all of it."""

_EXTRAS = {
    "onnxruntime": "cpu",
    "onnxruntime_ep_nv_tensorrt_rtx": "ort-rtx",
    "onnx_ir": "export",
    "onnx": "export",
}
"""Package -> the extra that installs it."""


def load_check_session() -> type[CheckSession]:
    """Import and return `CheckSession`, so that a missing package is reported before any work.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    import_ort("ort-cpu")
    from refdiff.engines.check_session import CheckSession

    return CheckSession
