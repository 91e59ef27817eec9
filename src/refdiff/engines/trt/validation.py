"""Check a plan before it is loaded; plans are code, so an unknown one is never loaded.

In: a plan's path, the bundle, TensorRT and the GPU. Out: its metadata, or an error that names the constraint
that failed and the command that fixes it. Nothing is rebuilt here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.bundle import Bundle
from refdiff.engines.trt.device import Device
from refdiff.engines.trt.flavour import Flavour
from refdiff.engines.trt.metadata import (
    AMPERE_PLUS,
    PORTABLE,
    PlanMetadata,
    graph_sha256,
    read_metadata,
    recipe_sha256,
)
from refdiff.engines.trt.trust import is_trusted
from refdiff.errors import EngineError

Verify = Literal["hash", "size"]

_AMPERE = 8
"""Major compute capability of the first GPUs that `PORTABLE` and `AMPERE_PLUS` plans run on."""


def check_plan(
    plan: Path,
    bundle: Bundle,
    graph: str,
    flavour: Flavour,
    device: Device | None,
    *,
    verify: Verify = "hash",
) -> PlanMetadata:
    """Check a plan without loading it.

    Args:
        plan: its path.
        bundle: an opened bundle, so its own files match its manifest.
        graph: the graph that the plan must compute.
        flavour: the TensorRT that will load it.
        device: the GPU that will run it; None skips the checks that depend on it.
        verify: "hash" reads every byte of the plan; "size" only compares its size.

    Raises:
        EngineError: the first constraint that failed.
    """
    cure = f"refdiff build {bundle.path} --flavour {flavour.name} --graph {graph}"
    if not plan.is_file():
        raise EngineError(f"{plan} does not exist; build it with: {cure}")
    metadata = read_metadata(plan)
    for complaint in _complaints(metadata, bundle, graph, flavour, device):
        raise EngineError(f"{plan} {complaint}; build it again with: {cure}")
    _check_bytes(plan, metadata, verify, cure)
    if not is_trusted(metadata.plan_sha256):
        raise EngineError(
            f"{plan} was not built by this user on this machine, and a plan is code; build it with: {cure}, "
            "or accept it with --trust-plans added"
        )
    return metadata


def check_validity(flavour: Flavour, runtime: Any, plan_bytes: Any, *, where: Path) -> str | None:
    """Query TensorRT-RTX whether it can run a plan on this machine; TensorRT has no such query.

    Args:
        flavour: the TensorRT that will load it.
        runtime: its `Runtime`.
        plan_bytes: the plan, in memory or mapped.
        where: the plan's path, for messages.

    Returns:
        A warning if it will run slower than it could; None if it is valid or cannot be queried.

    Raises:
        EngineError: it cannot run.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, diagnostics = runtime.get_engine_validity(plan_bytes)
    kinds = flavour.module.EngineValidity
    if validity == kinds.VALID:
        return None
    reasons = (
        ", ".join(_reasons(flavour, int(diagnostics))) or "no reason given; is there a GPU and a driver?"
    )
    if validity == kinds.SUBOPTIMAL:
        return f"{where} runs here, but not at its best ({reasons})"
    raise EngineError(
        f"{flavour.title} says {where} cannot run on this machine ({reasons}); build it again with: "
        "refdiff build BUNDLE --force, or take another back-end: --backend ort-cuda"
    )


def _reasons(flavour: Flavour, diagnostics: int) -> Iterator[str]:
    known = getattr(flavour.module, "EngineInvalidityDiagnostics", None)
    for name in dir(known):
        if name.isupper() and int(getattr(known, name)) & diagnostics:
            yield name.lower().replace("_", " ")


def _complaints(
    metadata: PlanMetadata, bundle: Bundle, graph: str, flavour: Flavour, device: Device | None
) -> Iterator[str]:
    identity = metadata.identity
    if identity.graph != graph:
        yield f"is of graph {identity.graph}, expected {graph}"
    if identity.flavour != flavour.name:
        yield f"was built with {identity.flavour}, expected {flavour.name}"
    if graph not in bundle.manifest.graphs:
        yield f"is of a graph that {bundle.path} does not have"
    elif identity.onnx_sha256 != graph_sha256(bundle.manifest, graph):
        yield f"was built from another {graph}.onnx than {bundle.path} holds"
    elif identity.recipe_sha256 != recipe_sha256(bundle.manifest, graph):
        yield f"was built by another precision recipe than {bundle.path} holds"
    if not _version_fits(identity.version, flavour.version, compatible=_flag(metadata, "version_compatible")):
        yield f"was built with {identity.flavour} {identity.version}, this is {flavour.version}"
    if device is not None and not _target_fits(identity.targets, device.compute_capability, flavour):
        targets = ", ".join(identity.targets)
        yield f"was built for compute capability {targets}, this {device.name} is {device.compute_capability}"


def _flag(metadata: PlanMetadata, name: str) -> bool:
    return bool(metadata.identity.flags.get(name, False))


def _version_fits(theirs: str, ours: str, *, compatible: bool) -> bool:
    """Return whether ours is the same, or later within the major version of a compatible plan."""
    if theirs == ours or not compatible:
        return theirs == ours
    built, here = _numbers(theirs), _numbers(ours)
    return built[:1] == here[:1] and built <= here


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _target_fits(targets: tuple[str, ...], compute_capability: str, flavour: Flavour) -> bool:
    if targets == (PORTABLE,):
        return _is_recent(compute_capability) and flavour.supports(compute_capability)
    if targets == (AMPERE_PLUS,):
        return _is_recent(compute_capability)
    return compute_capability in targets


def _is_recent(compute_capability: str) -> bool:
    return int(compute_capability.split(".")[0]) >= _AMPERE


def _check_bytes(plan: Path, metadata: PlanMetadata, verify: Verify, cure: str) -> None:
    size = plan.stat().st_size
    if size != metadata.plan_bytes:
        raise EngineError(
            f"{plan} is truncated or not the plan that was built: got {size} bytes, "
            f"expected {metadata.plan_bytes}; build it again with: {cure}"
        )
    if verify == "hash" and (got := hash_file(plan)) != metadata.plan_sha256:
        raise EngineError(
            f"{plan} is not the plan that was built: got sha256 {got[:12]}…, "
            f"expected {metadata.plan_sha256[:12]}…; build it again with: {cure}"
        )
