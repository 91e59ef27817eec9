"""Writing a bundle so that it exists whole or not at all.

Everything is written into a hidden sibling of the target; the manifest comes last, is forced to the disk,
and one rename makes the bundle visible. What a killed writer leaves behind has no manifest and never loads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from refdiff.contracts.manifest import (
    ENGINES_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    POSITIONS_NAME,
    TOKENIZER_NAME,
    FileRecord,
    GraphRecord,
    Manifest,
    refdiff_version,
)
from refdiff.contracts.parity import thinned
from refdiff.contracts.session import Array, Float
from refdiff.contracts.spec import ModelSpec
from refdiff.errors import BundleError, InputError

_CHUNK_BYTES = 1 << 20

GOLDEN_OUTPUT_BYTES = 1 << 14
"""Most of one output that the golden record keeps; SAM's masks would be fifty megabytes at full size."""

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
"""What the target's disk can do to a writer; any other OSError in the block is the caller's own."""


class BundleDraft:
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

    def write_golden(self, tensors: Mapping[str, tuple[Mapping[str, Array], Mapping[str, Array]]]) -> None:
        """Store recorded inputs and outputs, by graph; of a large output only every n-th value.

        What two graphs share is stored once, and inputs of half-precision values are stored as such.
        """
        arrays: dict[str, Array] = {}
        for graph, (feeds, results) in tensors.items():
            arrays |= {f"{graph}/in/{name}": _as_half(array) for name, array in feeds.items()}
            arrays |= {
                f"{graph}/out/{name}": thinned(array, GOLDEN_OUTPUT_BYTES) for name, array in results.items()
            }
        arrays = _stored_once(arrays)
        # numpy types savez's keywords as arrays or its own flag; a key with a slash is never that flag.
        np.savez_compressed(self.path / GOLDEN_NAME, **arrays)  # type: ignore[arg-type,unused-ignore]

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
            files={name: _flush_and_hash(self.path / name) for name in names},
            refdiff_version=refdiff_version(),
            random_seed=random_seed,
        )
        return self.manifest


@contextmanager
def writing_bundle(path: Path | str, *, overwrite: bool = False) -> Iterator[BundleDraft]:
    """Write a bundle; it appears at `path` when the block ends well, and not at all otherwise.

    Args:
        path: where the bundle will be; parent folders are made.
        overwrite: replace a bundle that is there. Anything else that is there is never touched.

    Raises:
        InputError: the target exists, or its disk cannot be written to.
        BundleError: the block ended without `describe`.
    """
    target = Path(path).absolute()
    _check_target(target, overwrite=overwrite)
    draft = BundleDraft(target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.partial"))
    try:
        _make_folder(draft.path)
        yield draft
        _seal(draft)
        _move_into_place(draft.path, target, overwrite=overwrite)
    except OSError as error:
        if not _is_disk_fault(error, draft.path):
            raise
        raise InputError(
            f"cannot write bundle {target}: {error.strerror or error}; free or choose another place"
        ) from error
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise InputError(f"{target} exists; choose another place, or allow overwriting (--overwrite)")
    stranger = _stranger_in(target)
    if stranger:
        raise InputError(
            f"{target} is not (only) a bundle: {stranger}; it is left alone, choose another place"
        )


def _stranger_in(target: Path) -> str | None:
    """Why `target` must not be deleted; None when it holds a bundle and nothing else."""
    manifest = target / MANIFEST_NAME
    if target.is_symlink() or not target.is_dir() or not manifest.is_file():
        return f"it has no {MANIFEST_NAME}"
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
        listed = {str(name).split("/")[0] for name in document["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST_NAME} is not refdiff's"
    others = sorted({entry.name for entry in target.iterdir()} - listed - {MANIFEST_NAME, ENGINES_NAME})
    return f"it also holds {others[0]!r}" if others else None


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except FileExistsError as error:  # a file stands where a parent folder should be
        raise NotADirectoryError(errno.ENOTDIR, "a parent is not a folder", str(path)) from error


def _seal(draft: BundleDraft) -> None:
    """Write the manifest, last, and force it to the disk."""
    if draft.manifest is None:
        raise BundleError(f"bundle draft {draft.path} was left without `describe`; nothing was written")
    text = json.dumps(draft.manifest.to_json(), indent=1) + "\n"
    with (draft.path / MANIFEST_NAME).open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    _flush_folder(draft.path)


def _move_into_place(draft: Path, target: Path, *, overwrite: bool) -> None:
    """One rename; a bundle that is replaced steps aside first and comes back if that rename fails."""
    _check_target(target, overwrite=overwrite)  # it may have appeared while the graphs were exported
    if not target.exists():
        draft.rename(target)
        _flush_folder(target.parent)
        return
    aside = draft.with_suffix(".replaced")
    target.rename(aside)
    try:
        draft.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    _flush_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _is_disk_fault(error: OSError, folder: Path) -> bool:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    ours = not names or any(name.startswith(str(folder.parent)) for name in names)
    return error.errno in _DISK_FAULTS and ours


def _as_half(array: Array) -> Array:
    """Half precision, where that loses nothing."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else array


def _stored_once(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """An array that was there before becomes the name of the first."""
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    kept: dict[str, Array] = {}
    for name, array in arrays.items():
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
        same = first.setdefault((array.dtype.str, array.shape, digest), name)
        kept[name] = array if same == name else np.array(same)
    return kept


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _flush_and_hash(path: Path) -> FileRecord:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return FileRecord(sha256=hash_file(path), size_bytes=path.stat().st_size)


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
