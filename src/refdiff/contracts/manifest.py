"""A bundle's manifest: its files, graphs, sizes and sources (docs/architecture.md, "A bundle").

A value that is read from and written to JSON. `bundle` reads the files themselves, `bundle_writer` writes
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from refdiff.contracts.graphs import TensorSpec
from refdiff.contracts.parity import Parity
from refdiff.contracts.spec import ModelSpec
from refdiff.errors import BundleError, InputError

FORMAT_VERSION = 4
"""Increased whenever an older refdiff could not use what a newer one writes; no other format is read.

1: the graph `clip_image` had one position table [p, w] for a whole call.
2: it has one for each image, [b, p, w].
3: the golden record stores shared arrays once; graphs may be in half precision or eight bits, by a recipe.
4: SAM's decoder is two graphs: `sam_decoder` stops at the predicted IoU, `sam_masks` decodes the masks that
   passed it.
"""

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
POSITIONS_NAME = "clip_positions.npy"
GOLDEN_NAME = "golden.npz"
ENGINES_NAME = "engines"
"""Folder of the device's TensorRT plans, built after the export; each has a metadata file."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Hash and size of a file of the bundle."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class GraphRecord:
    """One exported graph."""

    files: tuple[str, ...]
    """The ONNX file, then its external data; two graphs may share one data file."""
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recipe: str | None = None
    """Name of the precision recipe, None for an untouched export."""
    parity: Mapping[str, Parity] = field(default_factory=dict)
    """Output -> its distance from torch's when the graph was exported, the worst of all feeds."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a device needs to know about a bundle before it opens a graph."""

    spec: ModelSpec
    precision: str
    sources: Mapping[str, str]
    """Component -> sha256 of its weights, or "random, seed N"."""
    versions: Mapping[str, str]
    """Package -> its version at the export."""
    graphs: Mapping[str, GraphRecord]
    files: Mapping[str, FileRecord]
    """Path inside the folder, with forward slashes -> the file's hash and size."""
    refdiff_version: str
    format_version: int = FORMAT_VERSION
    random_seed: int | None = None
    """Seed of random weights, which only serve to measure time and memory; None for a trained model."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        document["spec"] = self.spec.to_json()
        document["graphs"] = {name: dataclasses.asdict(graph) for name, graph in self.graphs.items()}
        document["files"] = {name: dataclasses.asdict(file) for name, file in self.files.items()}
        return document

    @classmethod
    def from_json(cls, document: object, *, where: str) -> Manifest:
        """Read what `to_json` wrote.

        Args:
            document: the decoded JSON.
            where: the manifest's path, for messages.

        Raises:
            BundleError: another format version; a field that is missing, unknown or of the wrong type; a path
                that leaves the folder; or a graph that names an unlisted file.
        """
        if not isinstance(document, dict):
            raise BundleError(f"{where}: expected a JSON object, got {type(document).__name__}; export again")
        _check_version(document, where)
        try:
            fields = dict(document)
            manifest = cls(
                spec=ModelSpec.from_json(fields.pop("spec")),
                graphs={name: _graph(graph) for name, graph in fields.pop("graphs").items()},
                files={name: _file(file) for name, file in fields.pop("files").items()},
                **fields,
            )
        except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{where} is not a manifest refdiff wrote ({error}); export again") from error
        _check_paths(manifest, where)
        return manifest


def refdiff_version() -> str:
    """Return the version of the installed package."""
    from importlib import metadata  # late: it costs a quarter of what `refdiff.load` costs to import

    try:
        return metadata.version("refdiff")
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return "0+unknown"


def _check_version(document: Mapping[str, Any], where: str) -> None:
    version, writer = document.get("format_version"), document.get("refdiff_version", "unknown")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(
            f"{where}: got format_version {version!r}, expected an integer from 1; export again"
        )
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{where} has bundle format {version}, written by refdiff {writer}; "
            f"this refdiff {refdiff_version()} reads format {FORMAT_VERSION}; "
            f"upgrade with: pip install -U 'refdiff>={writer}'"
        )
    if version < FORMAT_VERSION:
        raise BundleError(
            f"{where} has bundle format {version}, written by refdiff {writer}; "
            f"this refdiff {refdiff_version()} reads format {FORMAT_VERSION}; "
            "export again with: refdiff export"
        )


def _check_paths(manifest: Manifest, where: str) -> None:
    for name in manifest.files:
        path = PurePosixPath(name)
        # A backslash or a colon means a drive or a separator on other systems.
        if (
            not name
            or path.is_absolute()
            or ".." in path.parts
            or "\\" in name
            or ":" in name
            or "\0" in name
        ):
            raise BundleError(f"{where} names {name!r}, a path outside the bundle; do not use this bundle")
    for graph_name, graph in manifest.graphs.items():
        if not graph.files:
            raise BundleError(f"{where}: graph {graph_name} names no file; export again")
        for name in graph.files:
            if name not in manifest.files:
                raise BundleError(
                    f"{where}: graph {graph_name} names {name!r}, which has no hash; export again"
                )


def _file(document: Mapping[str, Any]) -> FileRecord:
    sha256, size_bytes = document["sha256"], document["size_bytes"]
    if not isinstance(sha256, str) or not isinstance(size_bytes, int):
        raise TypeError(f"a file's record is {document!r}")
    return FileRecord(sha256=sha256, size_bytes=size_bytes)


def _graph(document: Mapping[str, Any]) -> GraphRecord:
    fields = dict(document)
    fields["files"] = tuple(str(name) for name in fields["files"])
    for side in ("inputs", "outputs"):
        fields[side] = tuple(
            TensorSpec(name=tensor["name"], dtype=tensor["dtype"], shape=tuple(tensor["shape"]))
            for tensor in fields[side]
        )
    fields["parity"] = {str(name): Parity(**measured) for name, measured in fields["parity"].items()}
    return GraphRecord(**fields)
