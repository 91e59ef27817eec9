"""Find the plans of a bundle that can run on this machine, by their metadata.

In: a bundle, a TensorRT, the GPU. Out: graph -> `FoundPlan`, and graph -> reason for those without a plan. By
default only the sizes of plans are compared; their bytes are hashed when they are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.engines.memory_plan import EngineSize
from refdiff.engines.trt.buffers import nbytes
from refdiff.engines.trt.device import Device
from refdiff.engines.trt.flavour import Flavour
from refdiff.engines.trt.metadata import PlanMetadata
from refdiff.engines.trt.plan_store import plans_folder
from refdiff.engines.trt.shapes import ShapeProfile
from refdiff.engines.trt.validation import Verify, check_plan
from refdiff.errors import EngineError, InputError

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoundPlan:
    """A plan whose metadata fit bundle, TensorRT and GPU."""

    path: Path
    metadata: PlanMetadata

    def size(self, graph: GraphSpec) -> EngineSize:
        """Return the device memory that it needs."""
        profiles = self.metadata.identity.shapes
        return EngineSize(
            name=graph.name,
            weights=self.metadata.plan_bytes,
            activations=self.metadata.activation_bytes or 0,
            tensors=max((_tensor_bytes(graph, each) for each in profiles), default=0),
        )

    def max_batch(self, graph: GraphSpec) -> int | None:
        """Return the most rows of the axis b that any of its profiles takes; None for a graph without b."""
        batched = [tensor.name for tensor in graph.inputs if tensor.shape[0] == "b"]
        profiles = self.metadata.identity.shapes
        return max((profile[name].most[0] for profile in profiles for name in batched), default=None)


def find_plans(
    bundle: Bundle, flavour: Flavour, device: Device | None, *, verify: Verify = "size"
) -> tuple[Mapping[str, FoundPlan], Mapping[str, str]]:
    """Check the bundle's plans.

    Args:
        bundle: an opened one.
        flavour: the TensorRT that will load them.
        device: the GPU that will run them.
        verify: "hash" reads every byte; loading always does.

    Returns:
        The plan of each graph that has one; and for each other graph the reason and the cure, faulty plans
        before missing ones.
    """
    found, faults, absent = dict[str, FoundPlan](), dict[str, str](), dict[str, str]()
    for graph in bundle.manifest.graphs:
        paths = _glob(bundle, f"{flavour.name}-*/{graph}.plan")
        # "tensorrt-*" is also the start of the other flavour's folders.
        paths = [path for path in paths if _flavour_of(path.parent.name) == flavour.name]
        try:
            found[graph] = _first_fitting(paths, bundle, graph, flavour, device, verify)
        except EngineError as error:
            (faults if paths else absent)[graph] = str(error)
    return found, faults | absent


def has_plans(bundle: Bundle, flavour: str) -> bool:
    """Return whether a bundle contains any plan of a flavour, fitting or not; needs no package."""
    return any(True for _ in _plans_of(bundle, flavour))


def plan_bytes(bundle: Bundle, flavour: str) -> int:
    """Return the bytes of all plans of a flavour, fitting or not."""
    return sum(path.stat().st_size for path in _plans_of(bundle, flavour))


def _plans_of(bundle: Bundle, flavour: str) -> Iterator[Path]:
    paths = _glob(bundle, "*/*.plan")
    return (path for path in paths if _flavour_of(path.parent.name) == flavour)


def _glob(bundle: Bundle, pattern: str) -> list[Path]:
    """Return the plans of a pattern; none where the folder cannot be read, as that of another user."""
    try:
        return sorted(plans_folder(bundle).glob(pattern))
    except (OSError, InputError) as error:
        _LOGGER.info("no plans: %s", error)
        return []


def _flavour_of(folder: str) -> str:
    return "tensorrt-rtx" if folder.startswith("tensorrt-rtx-") else folder.split("-")[0]


def _first_fitting(
    paths: Iterable[Path],
    bundle: Bundle,
    graph: str,
    flavour: Flavour,
    device: Device | None,
    verify: Verify,
) -> FoundPlan:
    """Return the first plan that can run here, or raise the first plan's fault."""
    faults = []
    for path in paths:
        try:
            metadata = check_plan(path, bundle, graph, flavour, device, verify=verify)
        except EngineError as error:  # noqa: PERF203 - a few files
            faults.append(error)
        else:
            return FoundPlan(path=path, metadata=metadata)
    raise next(iter(faults), None) or EngineError(
        f"{bundle.path} has no plan of {graph} for {flavour.name}; "
        f"build it with: refdiff build {bundle.path} --flavour {flavour.name} --graph {graph}"
    )


def _tensor_bytes(graph: GraphSpec, profile: ShapeProfile) -> int:
    """Return the bytes of inputs and outputs at their largest."""
    sizes = {
        axis: size
        for tensor in graph.inputs
        for axis, size in zip(tensor.shape, profile[tensor.name].most, strict=True)
        if isinstance(axis, str)
    }
    return sum(_bytes(tensor, sizes) for tensor in (*graph.inputs, *graph.outputs))


def _bytes(tensor: TensorSpec, sizes: Mapping[str, int]) -> int:
    shape = [sizes.get(axis, 1) if isinstance(axis, str) else axis for axis in tensor.shape]
    return nbytes(shape, np.dtype(tensor.dtype))
