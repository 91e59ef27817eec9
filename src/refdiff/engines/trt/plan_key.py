"""What a plan is made from, and the one hash of all of it.

In: a bundle's manifest, the shapes, the TensorRT and the GPU. Out: a `PlanIdentity`. Two builds with the
same key may share a plan; anything else is another plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refdiff.contracts.manifest import Manifest
from refdiff.engines.trt.shapes import ShapeProfile

PORTABLE = "portable"
"""Target of a TensorRT-RTX plan without named GPUs: Ampere and later."""

AMPERE_PLUS = "ampere-plus"
"""Target of a TensorRT plan in hardware-compatibility mode."""

Flag = bool | int | str | None


@dataclass(frozen=True, kw_only=True)
class PlanIdentity:
    """Everything that decides what is in a plan."""

    graph: str
    onnx_sha256: str
    """Of the graph's files, external data included: one hash over their names and hashes in the manifest."""
    precision: str
    recipe_sha256: str | None
    """Of the bundle's recipe, None for an untouched export."""
    shapes: tuple[ShapeProfile, ...]
    flavour: str
    version: str
    targets: tuple[str, ...]
    """Compute capabilities such as "8.7", or `PORTABLE` or `AMPERE_PLUS` alone."""
    flags: Mapping[str, Flag]
    """What else the builder was told, by option."""

    @property
    def key(self) -> str:
        """Hexadecimal sha256 of all of the above."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def device_key(self) -> str:
        """Name of the folder of all plans for these targets, such as tensorrt-sm87."""
        return device_key(self.flavour, self.targets)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "graph": self.graph,
            "onnx_sha256": self.onnx_sha256,
            "precision": self.precision,
            "recipe_sha256": self.recipe_sha256,
            "shapes": [
                {
                    name: {"min": list(each.least), "opt": list(each.usual), "max": list(each.most)}
                    for name, each in profile.items()
                }
                for profile in self.shapes
            ],
            "flavour": self.flavour,
            "version": self.version,
            "targets": list(self.targets),
            "flags": dict(self.flags),
        }


def device_key(flavour: str, targets: tuple[str, ...]) -> str:
    """The folder of a bundle's plans for these targets.

    The version is not part of it: a plan of another version is found there, refused by name and replaced.

    Args:
        flavour: such as "tensorrt".
        targets: compute capabilities, or `PORTABLE` or `AMPERE_PLUS` alone.
    """
    names = (f"sm{target.replace('.', '')}" if target[:1].isdigit() else target for target in targets)
    return "-".join((flavour, *names))


def graph_sha256(manifest: Manifest, graph: str) -> str:
    """One hash of a graph's ONNX file and its external data, from the hashes the manifest holds.

    Args:
        manifest: of a bundle that was opened and so verified.
        graph: one of its graphs.
    """
    digest = hashlib.sha256()
    for name in manifest.graphs[graph].files:
        digest.update(f"{name}\0{manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()


def recipe_sha256(manifest: Manifest, graph: str) -> str | None:
    """The hash of the recipe a graph was made by, None where there is none."""
    recipe = manifest.graphs[graph].recipe
    return None if recipe is None or recipe not in manifest.files else manifest.files[recipe].sha256
