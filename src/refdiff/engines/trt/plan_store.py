"""Where plans lie, how they get there, and when one may be used again.

    BUNDLE/engines/<device key>/<graph>.plan, .json (metadata), .log
    BUNDLE/engines/<device key>/.lock       held while a plan is built; the system releases a dead build's

In: an identity and a builder. Out: a plan with its metadata. A plan counts only with a metadata that names
its hash, and the metadata is written last: what a killed build leaves behind is never loaded, and is cleared
away by the next build.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from refdiff.contracts.atomic_io import (
    draft_path,
    hash_file,
    lock_file,
    report_write_errors,
    sync,
    write_file,
)
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.manifest import ENGINES_NAME, MANIFEST_NAME
from refdiff.engines.trt.metadata import PlanIdentity, PlanMetadata, metadata_path, read_metadata
from refdiff.errors import EngineError

LOCK_NAME = ".lock"
_PACKAGE = Path(__file__).resolve().parents[2]


def plans_folder(bundle: Bundle) -> Path:
    """Where a bundle's plans lie: beside its graphs.

    The plans of the built-in bundle lie in the user's cache: a package is not written into.
    """
    folder = bundle.path.resolve()
    if not folder.is_relative_to(_PACKAGE):
        return bundle.path / ENGINES_NAME
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "refdiff" / ENGINES_NAME / hash_file(folder / MANIFEST_NAME)[:12]


@dataclass(frozen=True)
class PlanFiles:
    """The files of one plan."""

    folder: Path
    graph: str

    @property
    def plan(self) -> Path:
        """TensorRT's bytes."""
        return self.folder / f"{self.graph}.plan"

    @property
    def metadata(self) -> Path:
        """What they were made from."""
        return metadata_path(self.plan)

    @property
    def log(self) -> Path:
        """What TensorRT said."""
        return self.folder / f"{self.graph}.log"

    @property
    def failed_log(self) -> Path:
        """What it said when it failed last; gone after the next good build."""
        return self.folder / f"{self.graph}.failed.log"


def plan_files(plans: Path, identity: PlanIdentity) -> PlanFiles:
    """The files of a plan below a bundle's folder of plans."""
    return PlanFiles(plans / identity.device_key, identity.graph)


def reusable(files: PlanFiles, identity: PlanIdentity) -> PlanMetadata | None:
    """The metadata of a plan that was built from exactly this and is whole; None where there is none."""
    try:
        metadata = read_metadata(files.plan)
    except EngineError:
        return None
    if metadata.identity.key != identity.key or not files.plan.is_file():
        return None
    if files.plan.stat().st_size != metadata.plan_bytes or hash_file(files.plan) != metadata.plan_sha256:
        return None
    return metadata


@contextmanager
def locked(files: PlanFiles, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the folder of a device's plans: one build at a time, of whatever process.

    Args:
        files: of the plan to be built; its folder is made.
        waiting: called once when another build holds it.

    Raises:
        InputError: the folder cannot be written to.
    """
    with _writing(files.folder):
        files.folder.mkdir(parents=True, exist_ok=True)
        (files.folder / LOCK_NAME).touch()
    with lock_file(files.folder / LOCK_NAME, on_busy=waiting):
        yield


@contextmanager
def drafted(files: PlanFiles) -> Iterator[Path]:
    """A file to build a plan into; it is gone when the block ends, unless `place` has taken it.

    Drafts of builds that were killed are removed first. Only for whoever holds the lock.

    Raises:
        InputError: the folder cannot be written to.
    """
    with _writing(files.folder):
        for left in files.folder.glob(f".{files.graph}.*.partial"):
            left.unlink(missing_ok=True)
    draft = draft_path(files.plan)
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def hashed(draft: Path) -> tuple[str, int]:
    """The hash and the size of a draft, for its metadata."""
    return hash_file(draft), draft.stat().st_size


def place(files: PlanFiles, draft: Path, metadata: PlanMetadata, log: str) -> None:
    """Put a built plan in its place, its metadata last; only for whoever holds the lock.

    Raises:
        InputError: the folder cannot be written to.
    """
    with _writing(files.folder):
        files.metadata.unlink(missing_ok=True)  # from here on, the old plan does not count
        draft.replace(files.plan)
        write_file(files.log, log)
        files.failed_log.unlink(missing_ok=True)
        sync(files.folder)
        write_file(files.metadata, metadata.to_text())
        sync(files.folder)


def keep_failed_log(files: PlanFiles, log: str) -> Path:
    """Keep what TensorRT said of a build that failed; an older plan stays as it is.

    Raises:
        InputError: the folder cannot be written to.
    """
    with _writing(files.folder):
        write_file(files.failed_log, log)
    return files.failed_log


def _writing(folder: Path) -> AbstractContextManager[None]:
    return report_write_errors(
        f"plans to {folder}", "free space, or copy the bundle to a place that can be written to"
    )
