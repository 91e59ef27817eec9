"""Open a bundle's plans with a TensorRT back-end, or report what is missing and its cure.

In: a bundle, and the name of a back-end or none. Out: `TrtSessions`. TensorRT and CUDA are imported only if
the bundle has plans or the back-end was requested by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.optional import install_line
from refdiff.contracts.session import Measure
from refdiff.engines.trt.cuda import Cuda, import_cudart
from refdiff.engines.trt.device import Device, find_device
from refdiff.engines.trt.flavour import FLAVOURS, Flavour, load_flavour
from refdiff.engines.trt.plans import find_plans, has_plans
from refdiff.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from refdiff.engines.trt.sessions import TrtSessions

TENSORRT = FLAVOURS
"""Back-ends that run plans."""

_EXTRAS = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}
"""Back-end -> the extra that installs cuda-python."""


def open_plans(
    bundle: Bundle,
    backend: str,
    *,
    reason: str,
    memory: str | None = None,
    cuda_graphs: bool = True,
    measure: Measure | None = None,
) -> TrtSessions:
    """Open sessions of a bundle's plans; nothing is loaded to the device yet.

    Args:
        bundle: an opened one.
        backend: one of `TENSORRT`.
        reason: why it was chosen.
        memory: see `refdiff.engines.factory.open_sessions`.
        cuda_graphs: replay runs of unchanging shapes as CUDA graphs.
        measure: see `refdiff.engines.factory.open_sessions`.

    Raises:
        InputError: the memory is neither a size nor a holding.
        MissingDependencyError: a package, the GPU or its driver is missing.
        EngineError: no plan fits.
    """
    from refdiff.engines.trt.sessions import TrtSessions

    flavour, cuda, device = load_environment(backend)
    plans, refused = find_plans(bundle, flavour, device)
    if not plans:
        raise EngineError(_no_plan_message(bundle, backend, refused))
    return TrtSessions(
        bundle,
        flavour,
        cuda,
        device,
        plans=plans,
        refused=refused,
        reason=reason,
        memory=memory,
        cuda_graphs=cuda_graphs,
        measure=measure,
    )


def load_environment(backend: str) -> tuple[Flavour, Cuda, Device | None]:
    """Load everything that plans of any bundle need: TensorRT, CUDA and the GPU.

    Args:
        backend: one of `TENSORRT`.

    Raises:
        MissingDependencyError: a package, the GPU or its driver is missing.
        EngineError: CUDA cannot use the device.
    """
    return load_flavour(backend), Cuda(_import_cuda(backend)), find_device()


def prefer_plans(
    bundle: Bundle, *, has_driver: bool, memory: str | None = None, measure: Measure | None = None
) -> tuple[TrtSessions | None, str]:
    """Open the bundle's plans if every graph has one that fits this machine.

    Args:
        bundle: an opened one.
        has_driver: whether this machine has an NVIDIA driver.
        memory: see `refdiff.engines.factory.open_sessions`.
        measure: see `refdiff.engines.factory.open_sessions`.

    Returns:
        The sessions and ""; or None and the reason, which is empty without plans and without a driver.

    Raises:
        InputError: the memory is neither a size nor a holding.
    """
    present = [name for name in TENSORRT if has_plans(bundle, name)]
    if not present:
        return None, f"no plans (refdiff build {bundle.path})" if has_driver else ""
    if not has_driver:
        return None, f"its plans ({', '.join(present)}) need an NVIDIA driver"
    reasons = []
    for name in present:
        try:
            sessions = open_plans(
                bundle,
                name,
                reason="the bundle's plans fit this GPU and TensorRT",
                memory=memory,
                measure=measure,
            )
        except (EngineError, MissingDependencyError) as error:
            reasons.append(f"plans not used: {error}")
            continue
        if not sessions.refused:
            return sessions, ""
        sessions.close()
        reasons.append(f"plans not used: {next(iter(sessions.refused.values()))}")
    return None, "; ".join(reasons)


def _no_plan_message(bundle: Bundle, backend: str, refused: Mapping[str, str]) -> str:
    """Return the fault of the first plan, or that there is none."""
    if has_plans(bundle, backend):
        return next(iter(refused.values()))
    return (
        f"{bundle.path} has no plans for {backend}; "
        f"build them with: refdiff build {bundle.path} --flavour {backend}"
    )


def _import_cuda(backend: str) -> Any:
    """Import cuda-python; only its own absence is reported as a missing dependency."""
    try:
        return import_cudart()
    except ModuleNotFoundError as error:
        if error.name not in ("cuda", "cuda.cudart", "cuda.bindings"):
            raise
        raise MissingDependencyError(
            f"back-end {backend} needs cuda-python, which is not installed; "
            f"{install_line(_EXTRAS[backend])}; on a Jetson: {install_line('jetson')}"
        ) from error
