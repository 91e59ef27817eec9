"""From the name of a TensorRT back-end to sessions: what has to be here for it, and the cure where it is not.

In: a bundle and a back-end's name, or the question whether plans should be preferred. Out: `TrtSessions`.
Nothing heavy is imported before it is known that the bundle has plans, or that they were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refdiff.contracts.bundle import Bundle
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
"""Back-end -> the extra that brings cuda-python."""


def open_plans(
    bundle: Bundle,
    backend: str,
    *,
    reason: str,
    memory: str | None = None,
    capture: bool = True,
    measure: Measure | None = None,
) -> TrtSessions:
    """Sessions of a bundle's plans; nothing is on the device yet.

    Args:
        bundle: an opened one.
        backend: one of `TENSORRT`.
        reason: why it was chosen.
        memory: see `refdiff.engines.factory.open_sessions`.
        capture: replay runs of unchanging shapes as CUDA graphs.
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
        raise EngineError(_nothing_fits(bundle, backend, refused))
    return TrtSessions(
        bundle,
        flavour,
        cuda,
        device,
        plans=plans,
        refused=refused,
        reason=reason,
        memory=memory,
        capture=capture,
        measure=measure,
    )


def load_environment(backend: str) -> tuple[Flavour, Cuda, Device | None]:
    """Everything that plans of any bundle need.

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
    """The bundle's plans, if every graph has one that fits this machine.

    Args:
        bundle: an opened one.
        has_driver: whether this machine has an NVIDIA driver.
        memory: see `refdiff.engines.factory.open_sessions`.
        measure: likewise.

    Returns:
        The sessions, or None; and why not, empty where the bundle has no plans and none could be expected.

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


def _nothing_fits(bundle: Bundle, backend: str, refused: Mapping[str, str]) -> str:
    """The first plan's fault, where there is a plan at all."""
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
            f"pip install 'refdiff[{_EXTRAS[backend]}]'; on a Jetson: pip install 'refdiff[jetson]'"
        ) from error
