"""A plan's identity and the JSON file next to it (docs/engines.md, "When a plan is loaded").

`PlanIdentity` is everything that determines a plan: the graph, the sizes, the TensorRT, the GPUs and the
options. Builds with the same key may share a plan. `PlanMetadata` adds the plan's hash and sizes; every field
is checked when the file is read. The plan itself stays as TensorRT wrote it, so that trtexec and Triton load
it.

    engines/tensorrt-sm87/unet.plan    TensorRT's own format
    engines/tensorrt-sm87/unet.json    the metadata
    engines/tensorrt-sm87/unet.log     TensorRT's messages during the build
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.contracts.json_fields import (
    as_list,
    as_number,
    as_table,
    as_text,
    as_whole,
    missing_or_wrong,
    read_json,
)
from refdiff.contracts.manifest import Manifest
from refdiff.engines.trt.attention_blocks import AttentionBlock
from refdiff.engines.trt.shapes import Shape, ShapeProfile, ShapeRange
from refdiff.errors import EngineError

PORTABLE = "portable"
"""Target of a TensorRT-RTX plan without named GPUs: Ampere and later."""

AMPERE_PLUS = "ampere-plus"
"""Target of a TensorRT plan in hardware-compatibility mode."""

Flag = bool | int | str | None


@dataclass(frozen=True, kw_only=True)
class PlanIdentity:
    """Everything that determines a plan."""

    graph: str
    onnx_sha256: str
    """Hash over the names and hashes of the graph's files in the manifest, external data included."""
    precision: str
    recipe_sha256: str | None
    """Hash of the bundle's recipe, None for a graph without one."""
    shapes: tuple[ShapeProfile, ...]
    flavour: str
    version: str
    targets: tuple[str, ...]
    """Compute capabilities such as "8.7", or `PORTABLE` or `AMPERE_PLUS` alone."""
    flags: Mapping[str, Flag]
    """All other settings of the builder, by option."""

    @property
    def key(self) -> str:
        """Hexadecimal sha256 of all fields."""
        return hash_document(self.to_json())

    @property
    def device_key(self) -> str:
        """Name of the folder of all plans for these targets, such as tensorrt-sm87.

        The version is not part of it, so a plan of another version is found there, refused and replaced.
        """
        names = (f"sm{name.replace('.', '')}" if name[:1].isdigit() else name for name in self.targets)
        return "-".join((self.flavour, *names))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
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


def graph_sha256(manifest: Manifest, graph: str) -> str:
    """Return one hash of a graph's ONNX file and its external data, from the hashes in the manifest.

    Args:
        manifest: of an opened, so verified, bundle.
        graph: one of its graphs.
    """
    digest = hashlib.sha256()
    for name in manifest.graphs[graph].files:
        digest.update(f"{name}\0{manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()


def recipe_sha256(manifest: Manifest, graph: str) -> str | None:
    """Return the hash of a graph's recipe, None if it has none."""
    recipe = manifest.graphs[graph].recipe
    return None if recipe is None or recipe not in manifest.files else manifest.files[recipe].sha256


METADATA_FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class PlanMetadata:
    """Everything that is known of a plan without loading it."""

    identity: PlanIdentity
    plan_sha256: str
    plan_bytes: int
    activation_bytes: int | None
    """Device memory of one context in bytes, as the builder planned it; None if it did not say."""
    attention: tuple[AttentionBlock, ...]
    """The graph's attentions, and whether the plan fused each."""
    seconds: float
    """Duration of the build, parsing included."""
    built_on: str | None
    """Name of the GPU of the machine that built it; None if there was none."""
    refdiff_version: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del document["identity"]
        document["attention"] = [dataclasses.asdict(block) for block in self.attention]
        document = {
            "format": METADATA_FORMAT,
            "key": self.identity.key,
            **self.identity.to_json(),
            **document,
        }
        return {**document, "sha256": hash_document(document)}

    def to_text(self) -> str:
        """Return the content of the file."""
        return json.dumps(self.to_json(), indent=1) + "\n"

    @classmethod
    def from_json(cls, document: object, *, where: str) -> PlanMetadata:
        """Read what `to_json` wrote.

        Raises:
            EngineError: not a plan's metadata, another format, an invalid value, or changed by hand.
        """
        if not isinstance(document, dict):
            raise EngineError(f"{where}: expected a JSON object, got {type(document).__name__}; {_CURE}")
        fields = dict(document)
        if (found := fields.pop("format", None)) != METADATA_FORMAT or isinstance(found, bool):
            raise EngineError(f"{where}: got format {found!r}, expected {METADATA_FORMAT}; {_CURE}")
        try:
            stated = as_text(fields.pop("sha256"), "sha256")
            as_text(fields.pop("key"), "key")
            identity = _identity(
                {field.name: fields.pop(field.name) for field in dataclasses.fields(PlanIdentity)}
            )
            attention = tuple(_block(each) for each in as_list(fields.pop("attention"), "attention"))
            metadata = cls(identity=identity, attention=attention, **fields)
            _check_own(metadata)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise EngineError(
                f"{where} is not a plan's metadata ({missing_or_wrong(error)}); {_CURE}"
            ) from error
        got = metadata.to_json()["sha256"]
        if stated != got:
            raise EngineError(
                f"{where} was changed: got sha256 {got[:12]}…, expected {stated[:12]}…; {_CURE}"
            )
        return metadata


def hash_document(document: Mapping[str, Any]) -> str:
    """Return the hash of a document's JSON, with its names sorted."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


_CURE = "build the plan again with: refdiff build BUNDLE --force"


def metadata_path(plan: Path) -> Path:
    """Return the path of a plan's metadata."""
    return plan.with_suffix(".json")


def read_metadata(plan: Path) -> PlanMetadata:
    """Read the metadata of a plan; the plan itself is not checked (see `validation`).

    Raises:
        EngineError: it is missing, unreadable, or not a plan's metadata.
    """
    path = metadata_path(plan)
    if not path.exists():
        raise EngineError(f"{plan} has no metadata {path.name}, so its origin is unknown; {_CURE}")
    document = read_json(path, EngineError, _CURE)
    return PlanMetadata.from_json(document, where=str(path))


def _identity(fields: dict[str, Any]) -> PlanIdentity:
    for name in ("graph", "onnx_sha256", "precision", "flavour", "version"):
        as_text(fields[name], name)
    if fields["recipe_sha256"] is not None:
        as_text(fields["recipe_sha256"], "recipe_sha256")
    targets = tuple(as_text(target, "targets") for target in as_list(fields["targets"], "targets"))
    if not targets:
        raise ValueError("targets is empty")
    as_table(fields["flags"], "flags")
    shapes = tuple(_profile(profile) for profile in as_list(fields["shapes"], "shapes"))
    return PlanIdentity(**{**fields, "targets": targets, "shapes": shapes})


def _block(document: Any) -> AttentionBlock:
    obstacles = tuple(as_text(each, "obstacles") for each in as_list(document["obstacles"], "obstacles"))
    block = AttentionBlock(**{**document, "obstacles": obstacles})
    for name in ("product", "softmax", "mixing", "precision"):
        as_text(getattr(block, name), name)
    as_whole(block.head_size, "head_size", least=0)
    if not isinstance(block.fused, bool) and block.fused is not None:
        raise TypeError(f"fused is {block.fused!r}, expected true, false or null")
    return block


def _profile(document: Any) -> ShapeProfile:
    return {
        str(name): ShapeRange(
            least=_shape(entry["min"], name),
            usual=_shape(entry["opt"], name),
            most=_shape(entry["max"], name),
        )
        for name, entry in document.items()
    }


def _shape(value: object, name: str) -> Shape:
    return tuple(as_whole(size, f"shape of {name}", least=0) for size in as_list(value, f"shape of {name}"))


def _check_own(metadata: PlanMetadata) -> None:
    as_text(metadata.plan_sha256, "plan_sha256")
    as_text(metadata.refdiff_version, "refdiff_version")
    as_whole(metadata.plan_bytes, "plan_bytes", least=0)
    if metadata.activation_bytes is not None:
        as_whole(metadata.activation_bytes, "activation_bytes", least=0)
    if metadata.built_on is not None:
        as_text(metadata.built_on, "built_on")
    as_number(metadata.seconds, "seconds")
