"""A bundle's manifest: its files, graphs, sizes and sources (docs/architecture.md, "A bundle").

A value that is read from and written to JSON. `bundle` reads the files themselves, `bundle_writer` writes
them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from refdiff.contracts.graphs import TensorSpec, graph_contract
from refdiff.contracts.json_fields import (
    as_list,
    as_number,
    as_plain_text,
    as_table,
    as_whole,
    missing_or_wrong,
    shown,
)
from refdiff.contracts.parity import Parity
from refdiff.contracts.recipe import HALVES, QUANTIZED
from refdiff.contracts.spec import ModelSpec
from refdiff.errors import BundleError, InputError

FORMAT_VERSION = 6
"""Increased whenever an older refdiff could not use what a newer one writes; no other format is read.

1: the graph `clip_image` had one position table [p, w] for a whole call.
2: it has one for each image, [b, p, w].
3: the golden record stores shared arrays once; graphs may be in half precision or eight bits, by a recipe.
4: SAM's decoder is two graphs: `sam_decoder` stops at the predicted IoU, `sam_masks` decodes the masks that
   passed it.
5: the manifest has its own hash, and `golden_answer.npz` holds an image, a phrase and the answer.
6: `sam_decoder` reads the tokens of prompts instead of points, and `sam_prompts.npz` holds what makes them.
"""

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
POSITIONS_NAME = "clip_positions.npy"
PROMPTS_NAME = "sam_prompts.npz"
GOLDEN_NAME = "golden.npz"
ANSWER_NAME = "golden_answer.npz"
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

    @property
    def sha256(self) -> str:
        """Hash of everything in the manifest, and so of every file that it lists."""
        return str(self.to_json()["sha256"])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, its own hash last."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        document["spec"] = self.spec.to_json()
        document["graphs"] = {name: dataclasses.asdict(graph) for name, graph in self.graphs.items()}
        document["files"] = {name: dataclasses.asdict(file) for name, file in self.files.items()}
        return {**document, "sha256": manifest_sha256(document)}

    @classmethod
    def from_json(cls, document: object, *, where: str) -> Manifest:
        """Read what `to_json` wrote.

        Args:
            document: the decoded JSON.
            where: the manifest's path, for messages.

        Raises:
            BundleError: another format version; a document that is not the one that was hashed; a field that
                is missing, unknown, of another kind or out of range; a path that leaves the folder; a graph
                that names an unlisted file, or whose tensors have other sizes than the spec says.
        """
        if not isinstance(document, dict):
            raise BundleError(f"{where}: expected a JSON object, got {type(document).__name__}; export again")
        _check_version(document, where)
        try:
            _check_hash(document, where)
            manifest = _read_manifest(document, where)
            _check_graphs(manifest)
        except BundleError:
            raise
        except (InputError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise BundleError(
                f"{where} is not a manifest refdiff wrote ({missing_or_wrong(error)}); export again"
            ) from error
        return manifest


def manifest_sha256(document: Mapping[str, Any]) -> str:
    """Return the hash of a manifest's document: of its JSON with sorted names, without the hash itself.

    Raises:
        ValueError: it holds a number that is not finite.
    """
    rest = {name: value for name, value in document.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def refdiff_version() -> str:
    """Return the version of the installed package."""
    from importlib import metadata  # late: it costs a quarter of what `refdiff.load` costs to import

    try:
        return metadata.version("refdiff")
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return "0+unknown"


def _check_version(document: Mapping[str, Any], where: str) -> None:
    version, writer = document.get("format_version"), str(document.get("refdiff_version"))
    if not _VERSION.fullmatch(writer):  # it becomes part of a command in the message
        writer = "unknown"
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(
            f"{where}: got format_version {shown(version)}, expected an integer from 1; export again"
        )
    if version > FORMAT_VERSION:
        package = "refdiff" if writer == "unknown" else f"'refdiff>={writer}'"
        raise BundleError(
            f"{where} has bundle format {version}, written by refdiff {writer}; "
            f"this refdiff {refdiff_version()} reads format {FORMAT_VERSION}; "
            f"upgrade with: pip install -U {package}"
        )
    if version < FORMAT_VERSION:
        raise BundleError(
            f"{where} has bundle format {version}, written by refdiff {writer}; "
            f"this refdiff {refdiff_version()} reads format {FORMAT_VERSION}; "
            "export again with: refdiff export"
        )


_VERSION = re.compile(r"[0-9][0-9A-Za-z.+]{0,40}")


def _check_hash(document: Mapping[str, Any], where: str) -> None:
    stated, got = document.get("sha256"), manifest_sha256(document)
    if stated != got:
        raise BundleError(
            f"{where} was changed: got sha256 {got[:12]}…, expected {shown(stated)[:13]}…; "
            "copy or export the bundle again"
        )


def _read_manifest(document: Mapping[str, Any], where: str) -> Manifest:
    """Build the manifest; every field is read by its kind."""
    fields = dict(document)
    del fields["sha256"]
    files = as_table(fields.pop("files"), "files")
    for name in files:
        _check_path(name, where)
    spec, graphs = ModelSpec.from_json(fields.pop("spec")), as_table(fields.pop("graphs"), "graphs")
    if fields["random_seed"] is not None:
        as_whole(fields["random_seed"], "random_seed", least=0)
    return Manifest(
        spec=spec,
        precision=_precision(fields.pop("precision"), "precision"),
        sources=_texts(fields.pop("sources"), "sources"),
        versions=_texts(fields.pop("versions"), "versions"),
        graphs={as_plain_text(name, "graphs"): _graph(graph, name) for name, graph in graphs.items()},
        files={name: _file(file, name) for name, file in files.items()},
        refdiff_version=as_plain_text(fields.pop("refdiff_version"), "refdiff_version"),
        **fields,
    )


_PLAIN_NAME = re.compile(r"[\w+-][\w.+ -]*")
"""A part of a file's path. A backslash or a colon means a drive or a separator on other systems; hidden names
are those of drafts and locks."""


def _check_path(name: str, where: str) -> None:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or any(each in name for each in "\\:\0"):
        raise BundleError(f"{where} names {name!r}, a path outside the bundle; do not use this bundle")
    plain = all(_PLAIN_NAME.fullmatch(part) for part in name.split("/")) and len(name) <= _LONGEST_NAME
    if not plain or path.parts[0] in (MANIFEST_NAME, ENGINES_NAME):
        raise BundleError(
            f"{where} names the file {name[:_LONGEST_NAME]!r}, expected a plain name of letters, digits, "
            "dots and dashes; do not use this bundle"
        )


_LONGEST_NAME = 200


def _check_graphs(manifest: Manifest) -> None:
    """Refuse graphs that name unlisted files, or whose tensors are not those of the spec's sizes."""
    contract = graph_contract(manifest.spec)
    for name, graph in manifest.graphs.items():
        for file in (*graph.files, *(() if graph.recipe is None else (graph.recipe,))):
            if file not in manifest.files:
                raise ValueError(f"graph {name} names {file!r}, which has no hash")
        if name not in contract:
            continue  # of a later refdiff, which is refused where it is opened
        for side in ("inputs", "outputs"):
            got, expected = getattr(graph, side), getattr(contract[name], side)
            if got != expected:
                raise ValueError(
                    f"graph {name} has the {side} {_tensors_text(got)}, "
                    f"expected for the spec's sizes {_tensors_text(expected)}"
                )


def _tensors_text(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{each.name} {each.dtype} {list(each.shape)}" for each in tensors)


def _texts(value: object, name: str) -> dict[str, str]:
    return {
        as_plain_text(key, name): as_plain_text(text, f"{name} {key}")
        for key, text in as_table(value, name).items()
    }


def _precision(value: object, name: str) -> str:
    known = ("fp32", *HALVES, *QUANTIZED)
    if value not in known:
        raise ValueError(f"{name} is {shown(value)}, expected one of {', '.join(known)}; upgrade refdiff")
    return str(value)


def _file(value: object, name: str) -> FileRecord:
    fields = dict(as_table(value, f"the record of {name}"))
    sha256 = as_plain_text(fields.pop("sha256"), f"the sha256 of {name}")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"the sha256 of {name} is {sha256!r}, expected 64 hexadecimal digits")
    size_bytes = as_whole(fields.pop("size_bytes"), f"the size of {name}", least=0)
    return FileRecord(sha256=sha256, size_bytes=size_bytes, **fields)


def _graph(value: object, name: str) -> GraphRecord:
    fields = dict(as_table(value, f"graph {name}"))
    files = tuple(as_plain_text(file, f"files of {name}") for file in as_list(fields.pop("files"), "files"))
    if not files:
        raise ValueError(f"graph {name} names no file")
    recipe = fields.pop("recipe")
    return GraphRecord(
        files=files,
        precision=_precision(fields.pop("precision"), f"precision of {name}"),
        inputs=_tensors(fields.pop("inputs"), f"inputs of {name}"),
        outputs=_tensors(fields.pop("outputs"), f"outputs of {name}"),
        recipe=None if recipe is None else as_plain_text(recipe, f"recipe of {name}"),
        parity={
            as_plain_text(output, f"parity of {name}"): _parity(measured, f"parity of {name}")
            for output, measured in as_table(fields.pop("parity"), f"parity of {name}").items()
        },
        **fields,
    )


def _tensors(value: object, where: str) -> tuple[TensorSpec, ...]:
    tensors = (dict(as_table(each, where)) for each in as_list(value, where))
    return tuple(
        TensorSpec(
            name=as_plain_text(each.pop("name"), where),
            dtype=as_plain_text(each.pop("dtype"), where),
            shape=tuple(
                size if isinstance(size, str) else as_whole(size, where, least=1)
                for size in as_list(each.pop("shape"), where)
            ),
            **each,
        )
        for each in tensors
    )


def _parity(value: object, where: str) -> Parity:
    fields = as_table(value, where)
    for number in fields.values():
        as_number(number, where)
    return Parity(**fields)
