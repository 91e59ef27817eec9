"""Store the forms of a bundle's graphs for ONNX Runtime's CUDA provider, like plans, and load them.

    BUNDLE/engines/ort-cuda/<graph>.onnx, .json (metadata), .log

A form is the graph with other operators (`passes/cuda_form.py`); it reads the bundle's own data file. It is
made by `refdiff build --flavour ort-cuda`, or at load where onnx_ir is installed, and is loaded only if its
metadata, key and hash fit and this user made or accepted it. Before a session runs one, its outputs are
compared with the golden record on the device itself; a form outside the limits is not used.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.accuracy.tolerances import graph_tolerance
from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.optional import install_line
from refdiff.contracts.parity import measure_parity, select_recorded
from refdiff.contracts.session import Session
from refdiff.engines.trt.metadata import (
    PlanIdentity,
    PlanMetadata,
    graph_sha256,
    metadata_path,
    read_metadata,
    recipe_sha256,
)
from refdiff.engines.trt.plan_store import PlanFiles, drafted, locked, place, plans_folder, reusable
from refdiff.engines.trt.trust import is_trusted
from refdiff.errors import EngineError, InputError, RefdiffError

if TYPE_CHECKING:
    from refdiff.passes.cuda_form import Rewritten

_LOGGER = logging.getLogger(__name__)

FORM = 1
"""Version of the form; one made by another version is made again."""

_MAKERS = ("onnx", "onnx_ir")
"""Packages that make forms."""


def make_form(path: Path) -> tuple[bytes, Rewritten]:
    """Return the form of a graph, and what was rewritten.

    Raises:
        ModuleNotFoundError: onnx_ir is not installed.
        BundleError: the graph cannot be read.
    """
    from refdiff.passes.cuda_form import cuda_form

    return cuda_form(path)


@dataclass(frozen=True, kw_only=True)
class StoredForm:
    """A form in its place."""

    path: Path
    metadata: PlanMetadata
    reused: bool
    """True if it existed and was made from exactly the same."""
    data: bytes
    """The serialized graph."""


def form_files(bundle: Bundle, graph: str) -> PlanFiles:
    """Return the files of a form, which may not exist.

    Raises:
        InputError: the bundle is the built-in one, and this user has no home folder.
    """
    return PlanFiles(plans_folder(bundle) / "ort-cuda", graph, suffix=".onnx")


def stored_forms(bundle: Bundle) -> Mapping[str, bool]:
    """Return the graphs that have a form, and whether it is intact, this user's, and made from the graph.

    Needs no package; the version of ONNX Runtime is not compared.
    """
    found = {}
    for graph in bundle.manifest.graphs:
        try:
            files = form_files(bundle, graph)
            if files.plan.is_file():
                found[graph] = _is_intact(files, graph_sha256(bundle.manifest, graph))
        except (OSError, InputError):  # noqa: PERF203 - a few files
            continue
    return found


def _is_intact(files: PlanFiles, onnx_sha256: str) -> bool:
    try:
        metadata = read_metadata(files.plan)
    except EngineError:
        return False
    if metadata.identity.onnx_sha256 != onnx_sha256 or metadata.identity.flags != {"form": FORM}:
        return False
    return is_trusted(metadata.plan_sha256) and hash_file(files.plan) == metadata.plan_sha256


class CudaForms:
    """The forms of one bundle.

    Args:
        bundle: an opened one.
        version: of the ONNX Runtime that runs them.
        make: makes a form.
    """

    def __init__(
        self,
        bundle: Bundle,
        version: str,
        make: Callable[[Path], tuple[bytes, Rewritten]] = make_form,
    ) -> None:
        self._bundle = bundle
        self._version = version
        self._make = make
        self._reported = False

    def load(self, graph: str) -> bytes | None:
        """Return the form of a graph, which is made and stored if there is none; None if it cannot be made.

        Raises:
            EngineError: the stored form is damaged, and it cannot be made here.
            BundleError: the graph cannot be read.
        """
        fault = ""
        try:
            stored = self._read(graph)
            if stored is not None:
                return stored
        except EngineError as error:
            fault = str(error)
        try:
            data = self._made(graph)
        except ModuleNotFoundError as error:
            self._report(error, fault)
            return None
        if fault:
            _LOGGER.warning("%s; it was made again", fault)
        return data

    def _made(self, graph: str) -> bytes:
        """Make the form of a graph, and store it where that is possible."""
        try:
            return self.build(graph).data
        except InputError as error:  # the folder cannot be written to
            _LOGGER.info("the form of %s is not stored: %s", graph, error)
            return self._make(self._bundle.graph_path(graph))[0]

    def build(
        self,
        graph: str,
        *,
        force: bool = False,
        trust: bool = False,
        waiting: Callable[[], None] = lambda: None,
    ) -> StoredForm:
        """Make and store a form, or keep the one that was made from exactly the same.

        Args:
            graph: its name.
            force: make it in any case.
            trust: keep one that this user did not make, and record it.
            waiting: called once if another process makes forms of this bundle.

        Raises:
            InputError: the folder cannot be written to.
            ModuleNotFoundError: onnx_ir is not installed.
        """
        files, identity = form_files(self._bundle, graph), self._identity(graph)
        with locked(files, waiting):
            metadata = None if force else reusable(files, identity, trust=trust)
            if metadata is not None:
                data = files.plan.read_bytes()
                return StoredForm(path=files.plan, metadata=metadata, reused=True, data=data)
            started = time.perf_counter()
            data, rewritten = self._make(self._bundle.graph_path(graph))
            metadata = PlanMetadata(
                identity=identity,
                plan_sha256=hashlib.sha256(data).hexdigest(),
                plan_bytes=len(data),
                activation_bytes=None,
                attention=(),
                seconds=round(time.perf_counter() - started, 2),
                built_on=None,
                refdiff_version=refdiff_version(),
            )
            with drafted(files) as draft:
                draft.write_bytes(data)
                place(files, draft, metadata, f"rewritten: {asdict(rewritten)}\n")
        return StoredForm(path=files.plan, metadata=metadata, reused=False, data=data)

    def _read(self, graph: str) -> bytes | None:
        """Return a stored form; None if there is none, or one that was made from something else or elsewhere.

        Raises:
            EngineError: its bytes are not those that were stored.
        """
        try:
            files, identity = form_files(self._bundle, graph), self._identity(graph)
        except InputError:  # no home folder
            return None
        if not (files.plan.is_file() and metadata_path(files.plan).is_file()):
            return None
        metadata = read_metadata(files.plan)
        if metadata.identity.key != identity.key or not is_trusted(metadata.plan_sha256):
            return None
        data = files.plan.read_bytes()
        if hashlib.sha256(data).hexdigest() != metadata.plan_sha256:
            raise EngineError(f"{files.plan} is damaged: its bytes are not those that were stored")
        return data

    def _report(self, error: ModuleNotFoundError, fault: str) -> None:
        """Log once that graphs run as they are, or refuse a damaged form that cannot be made again."""
        if error.name not in _MAKERS:
            raise error
        cure = (
            f"{install_line('export')}, or run refdiff build {self._bundle.path} --flavour ort-cuda where "
            "that is installed, copy the bundle, and run the same here with --trust-plans"
        )
        if fault:
            raise EngineError(f"{fault}; delete it, or make it again: {cure}") from error
        if not self._reported:
            self._reported = True
            _LOGGER.warning("ort-cuda runs the plain graphs: %s is not installed; %s", error.name, cure)

    def _identity(self, graph: str) -> PlanIdentity:
        manifest = self._bundle.manifest
        return PlanIdentity(
            graph=graph,
            onnx_sha256=graph_sha256(manifest, graph),
            precision=manifest.graphs[graph].precision,
            recipe_sha256=recipe_sha256(manifest, graph),
            shapes=(),
            flavour="ort",
            version=self._version,
            targets=("cuda",),
            flags={"form": FORM},
        )


def disagreement(bundle: Bundle, graph: str, session: Session) -> str | None:
    """Run a graph on its golden record; return what is outside the committed limits, or None.

    Args:
        bundle: an opened one.
        graph: the graph that the session computes.
        session: what runs on this device.
    """
    try:
        feeds, recorded = bundle.golden()[graph]
        limits = graph_tolerance(bundle.manifest.graphs[graph].precision, graph)
        outputs = session.run(feeds, list(recorded))
    except KeyError:
        return "the golden record has no such graph"
    except RefdiffError as error:
        return str(error)
    for name, record in recorded.items():
        parity = measure_parity(select_recorded(outputs[name], record), record)
        if not (parity.error <= limits.error and parity.correlation >= limits.correlation):
            return (
                f"{name} differs from the golden record: error {parity.error:.2g}, at most "
                f"{limits.error:g}; correlation {parity.correlation:.6f}, at least {limits.correlation:g}"
            )
    return None
