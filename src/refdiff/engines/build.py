"""`build`: build TensorRT plans of a bundle's graphs, in the bundle.

A plan that was built from exactly the same graph, sizes, TensorRT, GPU and flags is kept; any other is built.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.inspection import MINIATURES, find_bundle
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import options_for
from refdiff.contracts.progress import Progress, silent
from refdiff.engines.cuda_forms import CudaForms
from refdiff.engines.factory import import_ort
from refdiff.engines.trt import plan_store
from refdiff.engines.trt.building import BuildTask, build_plan
from refdiff.engines.trt.device import Device, find_device
from refdiff.engines.trt.flavour import Flavour, choose_flavour
from refdiff.engines.trt.metadata import PlanIdentity, PlanMetadata, graph_sha256, recipe_sha256
from refdiff.engines.trt.monitor import Watch, make_log
from refdiff.engines.trt.options import BuildOptions, check_options, given_options
from refdiff.engines.trt.plan_store import PlanFiles
from refdiff.engines.trt.shapes import shape_profiles
from refdiff.errors import BundleError, EngineError, InputError

BUILT_VARIANTS = ("edge",)
"""Variants whose sizes a plan is built for by default."""


@dataclass(frozen=True, kw_only=True)
class BuiltGraph:
    """One plan."""

    plan: Path
    metadata: PlanMetadata
    reused: bool
    """True if it existed and was built from exactly the same."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"plan": str(self.plan), "reused": self.reused, **self.metadata.to_json()}


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Result of `build`."""

    bundle: Path
    flavour: str
    version: str
    reason: str
    """Reason for choosing this flavour."""
    targets: tuple[str, ...]
    """Compute capabilities, or "portable" or "ampere-plus" alone."""
    device: str | None
    """The GPU of this machine, None if there is none."""
    graphs: tuple[BuiltGraph, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **document,
            "bundle": str(self.bundle),
            "targets": list(self.targets),
            "graphs": [graph.to_json() for graph in self.graphs],
        }


def build(
    bundle: Path | str,
    *,
    flavour: str = "auto",
    graphs: Sequence[str] = (),
    variants: Sequence[str] = BUILT_VARIANTS,
    options: BuildOptions | None = None,
    size: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build plans, or keep existing ones.

    Args:
        bundle: its folder, or "mini", whose plans are stored in the user's cache.
        flavour: "tensorrt", "tensorrt-rtx" or "auto"; or "ort-cuda" for the forms of the graphs that ONNX
            Runtime's CUDA provider runs, for all variants.
        graphs: names; none means all.
        variants: the variants of the pipeline whose sizes the plans must serve.
        options: options of the builder.
        size: the side in px of the diffusion model's input that the caller expects; a bundle has one.
        force: build even if an equal plan exists.
        progress: receives TensorRT's progress.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: an unknown name, another size than the bundle's, an option that this flavour does not
            have, or a folder that cannot be written to.
        MissingDependencyError: no TensorRT is installed, or no GPU is present and this TensorRT needs one.
        EngineError: TensorRT refused a graph; the message names the build log. Plans built before it stay.
        KeyboardInterrupt: Ctrl-C; the unfinished plan is deleted.
    """
    tell, wanted = progress or silent, options or BuildOptions()
    opened, device = find_bundle(bundle, expect=wanted.expect), find_device()
    names = chosen_graphs(opened, graphs)
    check_size(opened, size)
    if flavour == FORMS:
        return _build_forms(opened, names, wanted, device, tell, force=force)
    trt, reason = choose_flavour(flavour, has_device=device is not None)
    check_options(wanted, trt, device)
    if wanted.attention_op:
        check_attention_op(opened)
    builder = _Builder(opened, trt, device, wanted, tuple(variants))
    return BuildReport(
        bundle=opened.path,
        flavour=trt.name,
        version=trt.version,
        reason=reason,
        targets=wanted.targets(trt, device),
        device=None if device is None else device.name,
        graphs=tuple(builder.build(name, tell, force=force) for name in names),
    )


FORMS = "ort-cuda"
"""Flavour of forms for ONNX Runtime's CUDA provider, in place of plans."""


def _build_forms(
    bundle: Bundle,
    names: Sequence[str],
    options: BuildOptions,
    device: Device | None,
    tell: Progress,
    *,
    force: bool,
) -> BuildReport:
    """Make the forms of graphs, or keep existing ones."""
    workspace = [("workspace", "--workspace")] if options.workspace_bytes is not None else []
    for _, option in (*given_options(options), *workspace):
        raise InputError(f"got {option}, but it is an option of TensorRT's plans; leave it out")
    version = import_ort(FORMS).ort.__version__
    forms, built = CudaForms(bundle, version), []
    for name in names:
        with require_export("a form for ort-cuda"):
            form = forms.build(
                name,
                force=force,
                trust=options.trust_plans,
                waiting=lambda: tell("waiting for another build of forms"),
            )
        tell(f"{name}: {form.path} is {'there' if form.reused else 'built'}")
        built.append(BuiltGraph(plan=form.path, metadata=form.metadata, reused=form.reused))
    return BuildReport(
        bundle=bundle.path,
        flavour=FORMS,
        version=version,
        reason="asked for",
        targets=("cuda",),
        device=None if device is None else device.name,
        graphs=tuple(built),
    )


def chosen_graphs(bundle: Bundle, graphs: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the chosen graphs of a bundle, in its order; none means all.

    Raises:
        InputError: it has no such graph.
    """
    have = bundle.manifest.graphs
    for name in graphs:
        if name not in have:
            raise InputError(f"{bundle.path} has no graph {name!r}, it has: {', '.join(have)}")
    return tuple(name for name in have if name in graphs or not graphs)


def check_size(bundle: Bundle, size: int | None) -> None:
    """Refuse a size that a bundle's graphs do not have.

    Raises:
        InputError: the bundle's size is another one.
    """
    have = bundle.spec.diffusion.image_size
    if size in (None, have):
        return
    cure = "leave it out: the miniature has no other"
    if bundle.spec.name not in MINIATURES:
        cure = f"leave it out, or export another bundle with: refdiff export MODEL --size {size}"
    raise InputError(f"got --size {size}, but the graphs of {bundle.path} are for {have} px; {cure}")


def check_attention_op(bundle: Bundle) -> None:
    """Refuse a bundle without half-precision products.

    Raises:
        InputError: it is in fp32, for which TensorRT has no fused attention.
    """
    if bundle.manifest.precision == "fp32":
        raise InputError(
            f"got --attention-op, but {bundle.path} is in fp32, in which TensorRT fuses no attention; "
            "convert it with: refdiff convert BUNDLE --precision fp16"
        )


class _Builder:
    """Builds the plans of one bundle, one after the other."""

    def __init__(
        self,
        bundle: Bundle,
        flavour: Flavour,
        device: Device | None,
        options: BuildOptions,
        variants: tuple[str, ...],
    ) -> None:
        self._bundle = bundle
        self._flavour = flavour
        self._device = device
        self._options = options
        self._variants = [options_for(bundle.spec, variant=name) for name in variants]
        self._contract = graph_contract(bundle.spec)
        self._plans = plan_store.plans_folder(bundle)

    def build(self, graph: str, tell: Progress, *, force: bool) -> BuiltGraph:
        """Build a plan, unless an equal one exists."""
        identity = self._identity(graph)
        files = plan_store.plan_files(self._plans, identity)
        with plan_store.locked(files, lambda: tell(f"{graph}: waiting for another build in {files.folder}")):
            trust = self._options.trust_plans
            existing = None if force else plan_store.reusable(files, identity, trust=trust)
            if existing is not None:
                tell(f"{graph}: {files.plan} is there")
                return BuiltGraph(plan=files.plan, metadata=existing, reused=True)
            return BuiltGraph(plan=files.plan, metadata=self._build(files, identity, tell), reused=False)

    def _identity(self, graph: str) -> PlanIdentity:
        manifest = self._bundle.manifest
        if graph not in self._contract:
            raise BundleError(f"graph {graph} is none that this refdiff knows; upgrade refdiff")
        return PlanIdentity(
            graph=graph,
            onnx_sha256=graph_sha256(manifest, graph),
            precision=manifest.graphs[graph].precision,
            recipe_sha256=recipe_sha256(manifest, graph),
            shapes=shape_profiles(self._contract[graph], self._bundle.spec, self._variants),
            flavour=self._flavour.name,
            version=self._flavour.version,
            targets=self._options.targets(self._flavour, self._device),
            flags=self._options.flags(),
        )

    def _build(self, files: PlanFiles, identity: PlanIdentity, tell: Progress) -> PlanMetadata:
        log, started = make_log(self._flavour), time.perf_counter()
        task = BuildTask(
            graph=identity.graph,
            onnx=self._bundle.graph_path(identity.graph),
            shapes=identity.shapes,
            options=self._options,
        )
        with plan_store.drafted(files) as draft:
            try:
                built = build_plan(self._flavour, task, draft, log, Watch(identity.graph, tell))
            except EngineError as error:
                kept = plan_store.keep_failed_log(files, "\n".join(log.lines) + "\n")
                raise EngineError(f"{error} (build log: {kept})") from error
            metadata = PlanMetadata(
                identity=identity,
                plan_sha256=hash_file(draft),
                plan_bytes=draft.stat().st_size,
                activation_bytes=built.activation_bytes,
                attention=built.attention,
                seconds=round(time.perf_counter() - started, 2),
                built_on=None if self._device is None else self._device.name,
                refdiff_version=refdiff_version(),
            )
            plan_store.place(files, draft, metadata, "\n".join(log.lines) + "\n")
        return metadata
