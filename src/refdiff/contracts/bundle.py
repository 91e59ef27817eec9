"""A bundle on disk: the folder that is copied to a device (docs/architecture.md, "A bundle").

    manifest.json         written last, read first
    <graph>.onnx          one per graph, large weights in <file>.data
    tokenizer.json        CLIP's byte-pair encoding
    clip_positions.npy    [grid*grid, width] float32: CLIP's patch positions, without the class row
    sam_prompts.npz       vectors of SAM's prompt encoder
    golden.npz            <graph>/in/<name> and <graph>/out/<name>: a self-test without torch; an array that
                          occurs again is stored as the name of its first occurrence
    golden_answer.npz     an image, a phrase and the answer that the bundle gave when it was written
    engines/              this device's TensorRT plans, not part of the manifest

In: a path. Out: a `Bundle`; every file it lists is inside the folder and is what the exporter wrote.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from refdiff.contracts.atomic_io import hash_file, is_draft
from refdiff.contracts.bundle_writer import BundleWriter, write_bundle
from refdiff.contracts.confidence import CONFIDENCE_ARRAYS_NAME, CONFIDENCE_NAME, Calibration
from refdiff.contracts.external_data import find_external_data
from refdiff.contracts.golden_answer import GoldenAnswer
from refdiff.contracts.json_fields import missing_or_wrong, read_json
from refdiff.contracts.manifest import (
    ANSWER_NAME,
    FORMAT_VERSION,
    GOLDEN_NAME,
    MANIFEST_NAME,
    POSITIONS_NAME,
    PROMPTS_NAME,
    TOKENIZER_NAME,
    FileRecord,
    GraphRecord,
    Manifest,
)
from refdiff.contracts.plain_file import Stamp, file_stamp, read_archive, read_array, read_plain
from refdiff.contracts.prompt_vectors import PromptVectors
from refdiff.contracts.session import Array, Float
from refdiff.contracts.spec import ModelSpec
from refdiff.errors import BundleError, EngineError

__all__ = [
    "FORMAT_VERSION",
    "Bundle",
    "BundleWriter",
    "FileRecord",
    "GoldenTensors",
    "GraphRecord",
    "Manifest",
    "Verify",
    "open_bundle",
    "read_manifest",
    "write_bundle",
]

_LOGGER = logging.getLogger(__name__)

Verify = Literal["hash", "size"]
GoldenTensors = dict[str, tuple[dict[str, Array], dict[str, Array]]]
"""Graph -> its recorded inputs and outputs, by tensor name."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle."""

    path: Path
    manifest: Manifest
    stamps: Mapping[str, Stamp | None] = field(default_factory=dict)
    """File -> its stamp before it was verified."""

    @property
    def spec(self) -> ModelSpec:
        """Sizes of the models that it was exported from."""
        return self.manifest.spec

    def graph_path(self, name: str) -> Path:
        """Return the ONNX file of graph `name`.

        Raises:
            BundleError: the bundle has no such graph.
        """
        record = self.manifest.graphs.get(name)
        if record is None:
            have = ", ".join(self.manifest.graphs)
            raise BundleError(f"{self.path} has no graph {name!r}, it has: {have}; export again")
        return self.path / record.files[0]

    def check_unchanged(self, name: str) -> None:
        """Refuse a graph whose files are not those that were verified: sessions map their weights.

        Raises:
            EngineError: a file was overwritten, replaced or deleted.
        """
        for file in self.manifest.graphs[name].files:
            if file in self.stamps and file_stamp(f"{self.path}/{file}") != self.stamps[file]:
                raise EngineError(
                    f"{self.path / file} changed on disk after the bundle was loaded; load the bundle again"
                )

    def tokenizer_json(self) -> str:
        """Return CLIP's byte-pair encoding in the `tokenizers` library's format."""
        path = self._listed(TOKENIZER_NAME)
        try:
            return read_plain(path).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} is not a tokenizer ({error}); export again") from error

    def clip_positions(self) -> Float:
        """Return CLIP's patch positions, [grid*grid, width] float32."""
        path, clip = self._listed(POSITIONS_NAME), self.spec.clip
        try:
            table = read_array(read_plain(path))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} is not a numpy array file ({error}); export again") from error
        expected = (clip.grid**2, clip.width)
        if table.dtype != np.float32 or table.shape != expected:
            got = f"{table.dtype} {table.shape}"
            raise BundleError(f"{path}: got {got}, expected float32 {expected}; export again")
        if not np.isfinite(table).all():
            raise BundleError(f"{path} holds values that are not finite; export again")
        return table

    def prompt_vectors(self) -> PromptVectors:
        """Return the vectors of SAM's prompt encoder.

        Raises:
            BundleError: they are missing or unreadable, or do not fit the spec.
        """
        path = self._listed(PROMPTS_NAME)
        try:
            return PromptVectors.from_arrays(read_archive(path), self.spec.sam)
        except (KeyError, OSError, ValueError) as error:
            raise BundleError(
                f"{path} does not hold the vectors of prompts ({missing_or_wrong(error)}); export again"
            ) from error

    def calibration(self) -> Calibration:
        """Return the models of the confidence; none if the bundle has no calibration.

        Raises:
            BundleError: the calibration is damaged.
        """
        if CONFIDENCE_NAME not in self.manifest.files:
            return Calibration(models={})
        path = self._listed(CONFIDENCE_NAME)
        try:
            document = json.loads(read_plain(path))
            arrays = read_archive(self._listed(CONFIDENCE_ARRAYS_NAME))
        except (OSError, RecursionError, ValueError) as error:
            raise BundleError(f"{path} or its arrays cannot be read ({error}); fit it again") from error
        width = self.spec.clip.embed_dim
        return Calibration.from_files(document, arrays, embed_dim=width, where=str(path))

    def golden(self) -> GoldenTensors:
        """Return the recorded tensors, by graph.

        Raises:
            BundleError: the record is missing or unreadable.
        """
        path = self._listed(GOLDEN_NAME)
        tensors: GoldenTensors = {}
        try:
            arrays = read_archive(path)
            for key in arrays:
                graph, side, name = key.split("/")
                array = _golden_array(arrays, key)
                tensors.setdefault(graph, ({}, {}))[("in", "out").index(side)][name] = array
        except (KeyError, OSError, ValueError) as error:
            raise BundleError(f"{path} is not a golden record ({error}); export again") from error
        return tensors

    def golden_answer(self) -> GoldenAnswer:
        """Return the recorded answer.

        Raises:
            BundleError: the record is missing or unreadable.
        """
        path = self._listed(ANSWER_NAME)
        try:
            return GoldenAnswer.from_arrays(read_archive(path))
        except (KeyError, OSError, ValueError) as error:
            raise BundleError(f"{path} is not a golden answer ({error}); export again") from error

    def _listed(self, name: str) -> Path:
        if name not in self.manifest.files:
            raise BundleError(f"{self.path / MANIFEST_NAME} does not list {name}; export again")
        return self.path / name


def _golden_array(archive: Mapping[str, Array], key: str) -> Array:
    """Return an array of the record in the graph's own type, following the name of a repeated array."""
    array = archive[key]
    if array.dtype.kind == "U":
        array = archive[str(array)]
    if array.dtype.kind == "U":
        raise ValueError(f"{key} names no array")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def open_bundle(path: Path | str, *, verify: Verify = "hash") -> Bundle:
    """Read the manifest, then check every file it lists.

    Args:
        path: the bundle's folder.
        verify: "hash" reads every byte; "size" only compares sizes, for huge bundles verified before.

    Raises:
        BundleError: the bundle is missing, damaged, newer than this refdiff, or leaves its folder.
    """
    folder, begin = Path(path), time.perf_counter()
    manifest = read_manifest(folder)
    root = folder.resolve()
    stamps: dict[str, Stamp | None] = {}
    for name, record in manifest.files.items():
        stamps[name] = file_stamp(root / name)
        _check_file(root, name, record, verify)
    for graph_record in manifest.graphs.values():
        _check_external_data(root, graph_record, manifest.files)
    _LOGGER.info(
        "opened bundle %s: %s, %s, %d files checked by %s in %.0f ms",
        *(folder, manifest.spec.name, manifest.precision, len(manifest.files), verify),
        1e3 * (time.perf_counter() - begin),
    )
    return Bundle(path=folder, manifest=manifest, stamps=stamps)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest; the files it lists are not checked.

    Raises:
        BundleError: there is no bundle in the folder, or it has another format.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise BundleError(
            f"bundle {folder} {what}; make one with: refdiff export, or use the built-in one: mini"
        )
    path = folder / MANIFEST_NAME
    if is_draft(folder.resolve().name):
        raise BundleError(f"{folder} is what an interrupted export left behind, not a bundle; export again")
    if not path.is_file():
        raise BundleError(
            f"{folder} has no {MANIFEST_NAME}: not a bundle, or a half-written one; export again"
        )
    _check_inside(folder.resolve(), MANIFEST_NAME)
    return Manifest.from_json(read_json(path, BundleError, "export again"), where=str(path))


def _check_inside(root: Path, name: str) -> Path:
    """Return the real path of `name`; refuse a link that leaves `root`."""
    real = Path(os.path.realpath(root / name))  # resolve() raises at a link to itself
    if not real.is_relative_to(root):
        raise BundleError(f"{root / name} is a link to {real}, outside the bundle; do not use this bundle")
    return real


def _check_file(root: Path, name: str, record: FileRecord, verify: Verify) -> None:
    path = _check_inside(root, name)
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "is missing"
        raise BundleError(f"{root / name} {what}; copy or export the bundle again")
    size = path.stat().st_size
    if size != record.size_bytes:
        raise BundleError(
            f"{root / name}: got {size} bytes, expected {record.size_bytes}; copy or export the bundle again"
        )
    if verify != "hash":
        return
    try:
        got = hash_file(path)
    except OSError as error:
        raise BundleError(f"{root / name} cannot be read ({error}); copy or export it again") from error
    if got != record.sha256:
        raise BundleError(
            f"{root / name} was changed: got sha256 {got[:12]}…, expected {record.sha256[:12]}…; "
            "copy or export the bundle again"
        )


def _check_external_data(root: Path, graph: GraphRecord, files: Mapping[str, FileRecord]) -> None:
    """Refuse a graph whose weights lie outside the files that the manifest lists for it."""
    path = root / graph.files[0]
    listed = {PurePosixPath(name) for name in graph.files[1:]}
    try:
        found = find_external_data(read_plain(path))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not a graph that can be read ({error}); export again") from error
    for each in found:
        name = PurePosixPath(graph.files[0]).parent / each.location
        if name not in listed:
            raise BundleError(
                f"{path} reads its weights from {each.location!r}, which the manifest does not list for it; "
                "do not use this bundle"
            )
        size = files[str(name)].size_bytes
        if each.offset + (each.length or 0) > size:
            raise BundleError(
                f"{path} reads {each.offset} + {each.length} bytes of {each.location}, which has {size}; "
                "export again"
            )
