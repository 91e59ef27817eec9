"""Write a bundle so that it exists whole or not at all.

Everything is written into a hidden sibling of the target; the manifest comes last, is forced to the disk,
and one rename makes the bundle visible. What a killed writer leaves behind has no manifest and never loads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refdiff.contracts.atomic_io import (
    hash_file,
    open_draft_folder,
    place_folder,
    report_write_errors,
    sync,
    write_file,
)
from refdiff.contracts.confidence import CONFIDENCE_ARRAYS_NAME, CONFIDENCE_NAME, Calibration
from refdiff.contracts.golden_answer import GoldenAnswer
from refdiff.contracts.manifest import (
    ANSWER_NAME,
    ENGINES_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    POSITIONS_NAME,
    PROMPTS_NAME,
    TOKENIZER_NAME,
    FileRecord,
    GraphRecord,
    Manifest,
    refdiff_version,
)
from refdiff.contracts.parity import subsample
from refdiff.contracts.plain_file import read_plain
from refdiff.contracts.prompt_vectors import PromptVectors
from refdiff.contracts.session import Array, Float
from refdiff.contracts.spec import ModelSpec
from refdiff.errors import BundleError, InputError

if TYPE_CHECKING:
    from refdiff.contracts.bundle import Bundle

GOLDEN_OUTPUT_BYTES = 1 << 14
"""Most bytes of one output that the golden record keeps; SAM's masks would be 50 MB at full size."""

_DISK_FAULTS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.EFBIG,
        errno.ENOTDIR,
    }
)
"""Errors of the target's disk; any other OSError in the block is the caller's own."""


class BundleWriter:
    """A bundle being written: put the graphs' files into `path`, then `describe` it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest | None = None

    def write_tokenizer(self, tokenizer_json: str) -> None:
        """Store CLIP's byte-pair encoding."""
        (self.path / TOKENIZER_NAME).write_text(tokenizer_json, encoding="utf-8")

    def write_clip_positions(self, table: Float) -> None:
        """Store CLIP's patch positions, [grid*grid, width]."""
        np.save(self.path / POSITIONS_NAME, np.asarray(table, dtype=np.float32), allow_pickle=False)

    def write_prompt_vectors(self, vectors: PromptVectors) -> None:
        """Store the vectors of SAM's prompt encoder."""
        np.savez(self.path / PROMPTS_NAME, **vectors.to_arrays())  # type: ignore[arg-type,unused-ignore]

    def write_golden(self, tensors: Mapping[str, tuple[Mapping[str, Array], Mapping[str, Array]]]) -> None:
        """Store recorded inputs and outputs, by graph; of a large output only every n-th value.

        An array that two graphs share is stored once; float32 arrays of half-precision values as float16.
        """
        arrays: dict[str, Array] = {}
        for graph, (feeds, results) in tensors.items():
            arrays |= {f"{graph}/in/{name}": _as_half(array) for name, array in feeds.items()}
            arrays |= {
                f"{graph}/out/{name}": subsample(array, GOLDEN_OUTPUT_BYTES)
                for name, array in results.items()
            }
        arrays = _store_once(arrays)
        # numpy types savez's keywords as arrays or its own flag; a key with a slash is never that flag.
        np.savez_compressed(self.path / GOLDEN_NAME, **arrays)  # type: ignore[arg-type,unused-ignore]

    def write_golden_answer(self, answer: GoldenAnswer) -> None:
        """Store an image, a phrase and the answer to it."""
        np.savez_compressed(self.path / ANSWER_NAME, **answer.to_arrays())  # type: ignore[arg-type,unused-ignore]

    def describe(
        self,
        *,
        spec: ModelSpec,
        precision: str,
        sources: Mapping[str, str],
        versions: Mapping[str, str],
        graphs: Mapping[str, GraphRecord],
        random_seed: int | None = None,
    ) -> Manifest:
        """Hash every file written so far; the manifest itself is written when the block ends."""
        names = sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        self.manifest = Manifest(
            spec=spec,
            precision=precision,
            sources=dict(sources),
            versions=dict(versions),
            graphs=dict(graphs),
            files={name: _sync_and_hash(self.path / name) for name in names},
            refdiff_version=refdiff_version(),
            random_seed=random_seed,
        )
        return self.manifest


@contextmanager
def write_bundle(path: Path | str, *, overwrite: bool = False) -> Iterator[BundleWriter]:
    """Write a bundle; it appears at `path` when the block ends well, and not at all otherwise.

    Args:
        path: the bundle's folder; parent folders are made.
        overwrite: replace a bundle that is there. Anything else that is there is never touched.

    Raises:
        InputError: the target exists, or the disk cannot be written to.
        BundleError: the block ended without `describe`.
    """
    target = Path(path).absolute()
    check_bundle_target(target, overwrite=overwrite)
    try:
        _make_parents(target)
        with open_draft_folder(target) as draft:
            yield (writer := BundleWriter(draft))
            _seal(writer)
            # It may have appeared while the graphs were exported.
            check_bundle_target(target, overwrite=overwrite)
            place_folder(draft, target)
    except OSError as error:
        if not _is_disk_fault(error, target):
            raise
        with report_write_errors(f"bundle {target}", "free or choose another place"):
            raise


def check_bundle_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a place that `write_bundle` could not write to, before any long work.

    Raises:
        InputError: the target exists and may not be replaced, or holds anything but a bundle.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise InputError(f"{target} exists; choose another place, or allow overwriting (--overwrite)")
    foreign = _foreign_content(target)
    if foreign:
        raise InputError(
            f"{target} is not (only) a bundle: {foreign}; it is not modified, choose another place"
        )


def _foreign_content(target: Path) -> str | None:
    """Return why `target` must not be deleted; None if it holds a bundle and nothing else."""
    manifest = target / MANIFEST_NAME
    if target.is_symlink() or not target.is_dir() or not manifest.is_file():
        return f"it has no {MANIFEST_NAME}"
    try:
        document = json.loads(read_plain(manifest))
        listed = {str(name).split("/")[0] for name in document["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST_NAME} is not refdiff's"
    others = sorted({entry.name for entry in target.iterdir()} - listed - {MANIFEST_NAME, ENGINES_NAME})
    return f"it also holds {others[0]!r}" if others else None


def _make_parents(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file stands where a parent folder should be
        raise NotADirectoryError(errno.ENOTDIR, "a parent is not a folder", str(path)) from error


def _seal(writer: BundleWriter) -> None:
    """Write the manifest, last, and force it to the disk."""
    if writer.manifest is None:
        raise BundleError(
            f"the block that writes {writer.path} ended without `describe`; nothing was written"
        )
    write_file(writer.path / MANIFEST_NAME, json.dumps(writer.manifest.to_json(), indent=1) + "\n")
    sync(writer.path)


def _is_disk_fault(error: OSError, target: Path) -> bool:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    ours = not names or any(name.startswith(str(target.parent)) for name in names)
    return error.errno in _DISK_FAULTS and ours


def _as_half(array: Array) -> Array:
    """Return a float32 array as float16 where that loses nothing, else unchanged."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else array


def _store_once(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Replace each array that occurred before by the name of the first."""
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    kept: dict[str, Array] = {}
    for name, array in arrays.items():
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
        same = first.setdefault((array.dtype.str, array.shape, digest), name)
        kept[name] = array if same == name else np.array(same)
    return kept


def _sync_and_hash(path: Path) -> FileRecord:
    sync(path)
    return FileRecord(sha256=hash_file(path), size_bytes=path.stat().st_size)


def add_calibration(bundle: Bundle, calibration: Calibration) -> Manifest:
    """Put a calibration into an existing bundle, in one step; one that was there is replaced.

    Files that stay are linked into the new folder where the disk can, and copied otherwise.

    Raises:
        InputError: the bundle cannot be written.
    """
    names = (CONFIDENCE_NAME, CONFIDENCE_ARRAYS_NAME)
    with write_bundle(bundle.path, overwrite=True) as writer:
        for source in sorted(bundle.path.rglob("*")):
            name = source.relative_to(bundle.path)
            if source.is_file() and name.as_posix() not in (*names, MANIFEST_NAME):
                (writer.path / name).parent.mkdir(parents=True, exist_ok=True)
                _link(source, writer.path / name)
        text, arrays = calibration.to_files()
        (writer.path / CONFIDENCE_NAME).write_text(text, encoding="utf-8")
        np.savez_compressed(writer.path / CONFIDENCE_ARRAYS_NAME, **arrays)  # type: ignore[arg-type,unused-ignore]
        files = {**bundle.manifest.files, **{name: _sync_and_hash(writer.path / name) for name in names}}
        writer.manifest = replace(bundle.manifest, files=dict(sorted(files.items())))
    return writer.manifest


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
