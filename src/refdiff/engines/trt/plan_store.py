"""Store plans in a bundle, and find those that can be reused.

    BUNDLE/engines/<device key>/<graph>.plan, .json (metadata), .log
    BUNDLE/engines/<device key>/.lock       held during a build; the system releases it when the process dies

In: an identity and a builder. Out: a plan with its metadata. A plan is valid only with metadata that contain
its hash, and the metadata are written last: the remains of a killed build are never loaded, and the next
build removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from refdiff.contracts.atomic_io import (
    draft_path,
    hash_file,
    report_write_errors,
    sync,
    write_file,
)
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.file_lock import lock_file
from refdiff.contracts.manifest import ENGINES_NAME
from refdiff.contracts.user_folders import cache_folder
from refdiff.engines.trt.metadata import PlanIdentity, PlanMetadata, metadata_path, read_metadata
from refdiff.engines.trt.trust import is_trusted, record_trust
from refdiff.errors import EngineError

LOCK_NAME = ".lock"
_PACKAGE = Path(__file__).resolve().parents[2]


def plans_folder(bundle: Bundle) -> Path:
    """Return the folder of a bundle's plans.

    It is in the bundle; for the built-in one, in the user's cache, because a package is not written to.

    Raises:
        InputError: the built-in one's, and this user has no home folder.
    """
    folder = bundle.path.resolve()
    if not folder.is_relative_to(_PACKAGE):
        return bundle.path / ENGINES_NAME
    return cache_folder() / ENGINES_NAME / bundle.manifest.sha256[:12]


@dataclass(frozen=True)
class PlanFiles:
    """The files of one plan."""

    folder: Path
    graph: str
    suffix: str = ".plan"
    """Ending of the plan's name; ".onnx" for a form of ONNX Runtime's."""

    @property
    def plan(self) -> Path:
        """The plan in TensorRT's format, or the form."""
        return self.folder / f"{self.graph}{self.suffix}"

    @property
    def metadata(self) -> Path:
        """The plan's metadata."""
        return metadata_path(self.plan)

    @property
    def log(self) -> Path:
        """TensorRT's messages during the build."""
        return self.folder / f"{self.graph}.log"

    @property
    def failed_log(self) -> Path:
        """TensorRT's messages during a failed build; deleted by the next successful one."""
        return self.folder / f"{self.graph}.failed.log"


def plan_files(plans: Path, identity: PlanIdentity) -> PlanFiles:
    """Return the files of a plan below a bundle's folder of plans."""
    return PlanFiles(plans / identity.device_key, identity.graph)


def reusable(files: PlanFiles, identity: PlanIdentity, *, trust: bool = False) -> PlanMetadata | None:
    """Return the metadata of an intact plan of the same identity; None if there is none.

    Args:
        files: of the plan.
        identity: what it has to be built from.
        trust: accept a plan that this user did not build, and record it.
    """
    try:
        metadata = read_metadata(files.plan)
    except EngineError:
        return None
    if metadata.identity.key != identity.key or not files.plan.is_file():
        return None
    if files.plan.stat().st_size != metadata.plan_bytes or hash_file(files.plan) != metadata.plan_sha256:
        return None
    if trust:
        record_trust(metadata.plan_sha256)
    return metadata if is_trusted(metadata.plan_sha256) else None


@contextmanager
def locked(files: PlanFiles, waiting: Callable[[], None]) -> Iterator[None]:
    """Lock the folder of a device's plans, so that one process builds at a time.

    Args:
        files: of the plan to be built; its folder is created.
        waiting: called once if another build holds the lock.

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
    """Provide a file to build a plan into; it is deleted at the end of the block unless `place` has moved it.

    Drafts of killed builds are removed first. The caller must hold the lock.

    Raises:
        InputError: the folder cannot be written to.
    """
    with _writing(files.folder):
        for draft in files.folder.glob(f".{files.graph}.*.partial"):
            draft.unlink(missing_ok=True)
    draft = draft_path(files.plan)
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def place(files: PlanFiles, draft: Path, metadata: PlanMetadata, log: str) -> None:
    """Record a built plan and put it in its place, its metadata last; the caller must hold the lock.

    Raises:
        InputError: the folder, or the user's record of plans, cannot be written to.
    """
    record_trust(metadata.plan_sha256)
    with _writing(files.folder):
        files.metadata.unlink(missing_ok=True)  # from here on, the old plan is invalid
        draft.replace(files.plan)
        write_file(files.log, log)
        files.failed_log.unlink(missing_ok=True)
        sync(files.folder)
        write_file(files.metadata, metadata.to_text())
        sync(files.folder)


def keep_failed_log(files: PlanFiles, log: str) -> Path:
    """Keep the log of a failed build; an older plan stays valid.

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
