"""Plans for tests: an identity, a plan on disk with its metadata, and which profile fits given shapes.

Imports only light modules, because test processes import it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import refdiff.miniature
from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.options import options_for
from refdiff.engines.trt.metadata import PlanIdentity, PlanMetadata, graph_sha256
from refdiff.engines.trt.plan_store import PlanFiles, drafted, place
from refdiff.engines.trt.shapes import ShapeProfile, ShapeRange, shape_profiles

BUNDLE = Path(refdiff.miniature.__file__).parent / "bundle"
MINIATURE = open_bundle(BUNDLE, verify="size")
CONTRACT = graph_contract(MINIATURE.spec)


def identity(graph: str = "unet", **changes: Any) -> PlanIdentity:
    """Identity of a miniature's graph, built for an Orin with TensorRT 10.3; `changes` are other fields."""
    fields: dict[str, Any] = {
        "graph": graph,
        "onnx_sha256": graph_sha256(MINIATURE.manifest, graph),
        "precision": "fp32",
        "recipe_sha256": None,
        "shapes": shape_profiles(CONTRACT[graph], MINIATURE.spec, [options_for(MINIATURE.spec)]),
        "flavour": "tensorrt",
        "version": "10.3.0",
        "targets": ("8.7",),
        "flags": {"refit": False, "workspace_bytes": None},
    }
    return PlanIdentity(**{**fields, **changes})


def put(
    files: PlanFiles, content: bytes, who: PlanIdentity | None = None, kind: type[PlanMetadata] = PlanMetadata
) -> PlanMetadata:
    """Put a plan in its place, as a build does once it has the lock."""
    with drafted(files) as draft:
        draft.write_bytes(content)
        metadata = kind(
            identity=who or identity(),
            plan_sha256=hash_file(draft),
            plan_bytes=draft.stat().st_size,
            activation_bytes=4096,
            attention=(),
            seconds=1.5,
            built_on="Orin",
            refdiff_version="0.1.0",
        )
        place(files, draft, metadata, "said\n")
    return metadata


def holds(allowed: ShapeRange, shape: Sequence[int]) -> bool:
    """Return whether a shape lies within a range."""
    return len(shape) == len(allowed.least) and all(
        low <= size <= high for low, size, high in zip(allowed.least, shape, allowed.most, strict=True)
    )


def fitting_profile(profiles: Sequence[ShapeProfile], shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return the index of the first profile that holds these input shapes, None if no profile does."""
    for index, profile in enumerate(profiles):
        if all(name in shapes and holds(each, shapes[name]) for name, each in profile.items()):
            return index
    return None
