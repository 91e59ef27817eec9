"""Folders that many tests read and none changes, made once for all processes and kept between runs.

    folder = made_once(cache, "tiny", sources=("src/refdiff/export", ...), make=lambda output: ...)

They lie in pytest's cache under a hash of everything they are made from: an edited source makes a new one,
and `pytest --cache-clear` deletes them all.
"""

import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from refdiff.contracts.atomic_io import draft_path
from refdiff.contracts.file_lock import lock_file

ROOT = Path(__file__).parents[2]

EXPORT_SOURCES = tuple(
    f"src/refdiff/{room}" for room in ("contracts", "export", "miniature/scenes", "passes", "runtime")
)
"""What decides an exported bundle, next to its stack."""

CONVERSION_SOURCES = tuple(
    f"src/refdiff/{room}"
    for room in (
        "accuracy",
        "calibration",
        "contracts",
        "data",
        "engines/intermediate_tensors.py",
        "engines/ort.py",
        "miniature",
        "passes",
        "runtime",
    )
)
"""What decides the miniature's recorded feeds and its bundles of fewer bits."""

MAKERS = "tests/conftest.py"
"""Decides every folder, for it makes most of them."""

PACKAGES = (
    "diffusers",
    "numpy",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "open_clip_torch",
    "torch",
    "transformers",
)
"""Packages whose version decides what is written."""

UNUSED_DAYS = 7
"""What was not read for so long is deleted."""


def made_once(
    cache: pytest.Cache, name: str, *, sources: Sequence[str], make: Callable[[Path], object]
) -> Path:
    """Return the folder `name`, made under a lock if there is none yet.

    Args:
        cache: pytest's cache.
        name: the folder's name.
        sources: the files, and the folders of `.py` and `.json` files, that decide what is made; relative to
            the repository.
        make: writes a folder, at the path it is given.
    """
    made = cache.mkdir("made")
    folder = made / digest(tuple(sources)) / name
    folder.parent.mkdir(exist_ok=True)
    os.utime(folder.parent)
    with lock_file(folder.with_name(f"{name}.lock"), on_busy=lambda: None):
        if not folder.exists():
            draft = draft_path(folder)
            make(draft)
            draft.rename(folder)
            _delete_unused(made)
    return folder


@functools.cache
def digest(sources: Sequence[str]) -> str:
    """Return a hash of the sources' content and of the versions of Python and of the packages."""
    found = hashlib.sha256(platform.python_version().encode())
    for path in (path for source in (*sources, MAKERS) for path in _files(ROOT / source)):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    for package in PACKAGES:
        found.update(_version(package).encode())
    return found.hexdigest()[:16]


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is among the sources of a test folder, and is not there")
    yield from sorted(path for kind in ("*.py", "*.json") for path in source.rglob(kind))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _delete_unused(made: Path) -> None:
    for folder in made.iterdir():
        if time.time() - folder.stat().st_mtime > UNUSED_DAYS * 86_400:
            shutil.rmtree(folder, ignore_errors=True)
