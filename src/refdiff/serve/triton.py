"""Write a bundle as a Triton model repository.

    refdiff/config.pbtxt               the whole pipeline: tensors of `tensors`, Triton's Python backend
    refdiff/1/model.py                 imports `triton_model`; refdiff has to be installed in the server
    refdiff/1/bundle/                  a copy of the bundle, unless it is named by a path in the server
    refdiff_unet/1/model.plan, …       with `graphs`: a TensorRT plan for each graph, and its config.pbtxt

It appears whole or not at all. Triton itself is not needed.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from refdiff.contracts.atomic_io import (
    hash_file,
    open_draft_folder,
    place_folder,
    report_write_errors,
    sync,
    write_file,
)
from refdiff.contracts.bundle import Bundle, open_bundle
from refdiff.contracts.graphs import TensorSpec
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.manifest import MANIFEST_NAME
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, silent
from refdiff.engines.factory import BACKENDS
from refdiff.errors import InputError
from refdiff.reports.page import Section
from refdiff.reports.table import Column, Table, numeric, size_text
from refdiff.serve.tensors import INPUTS, MODEL_NAME, MODEL_VERSION, OUTPUTS
from refdiff.serve.triton_plans import ChosenPlan, choose_plans

BUNDLE_FOLDER = "bundle"

_MARK = "# Written by: refdiff triton\n"

_MODEL = '''\
"""refdiff for Triton's Python backend, written by `refdiff triton`."""

from pathlib import Path

import triton_python_backend_utils as pb_utils

from refdiff.serve.triton_model import PythonModel


class TritonPythonModel(PythonModel):
    """The class that Triton looks for."""

    pb_utils = pb_utils
    folder = Path(__file__).parent
'''


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    """Options of the repository itself."""

    bundle_at: str | None = None
    """Absolute path of the bundle in the server; None: it is copied into the repository."""
    graphs: bool = False
    """Also write a model for each graph, with the plan that the bundle has of it."""
    server_version: str | None = None
    """The server that loads the plans, see `server_tensorrt`; needed with `graphs`."""
    compute_capability: str | None = None
    """GPU of the server, such as 8.6; needed where the bundle has plans for several."""
    overwrite: bool = False
    """Replace a repository that this function wrote."""


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """One model of the repository."""

    name: str
    backend: str
    """"python" or "tensorrt_plan"."""
    size_bytes: int
    """Of all its files."""
    tensorrt: str | None = None
    """Version that built its plan."""
    targets: tuple[str, ...] = ()
    """Compute capabilities of its plan."""


@dataclass(frozen=True, kw_only=True)
class RepositoryReport:
    """What was written."""

    path: Path
    bundle_sha256: str
    """Hash of the bundle's manifest; the model loads no other bundle."""
    models: tuple[ModelFolder, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        models = [{**vars(each), "targets": list(each.targets)} for each in self.models]
        return {"path": str(self.path), "bundle_sha256": self.bundle_sha256, "models": models}


def repository_section(report: RepositoryReport) -> Section:
    """Lay out one row per model, and how to start the server."""
    rows = [
        (
            each.name,
            each.backend,
            each.tensorrt or "–",
            ", ".join(each.targets) or "–",
            size_text(each.size_bytes),
        )
        for each in report.models
    ]
    columns = (Column("model"), Column("backend"), Column("TensorRT"), Column("GPU"), *numeric("size"))
    notes = (
        f"bundle: sha256 {report.bundle_sha256} (the model loads no other)",
        f"next: tritonserver --model-repository {shlex.quote(str(report.path))}, where refdiff is installed",
    )
    return Section(lines=(str(report.path),), tables=(Table(columns=columns, rows=rows, footnotes=notes),))


def write_repository(
    bundle: Path | str,
    output: Path | str,
    *,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    layout: RepositoryOptions | None = None,
    progress: Progress | None = None,
) -> RepositoryReport:
    """Write the repository.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        output: the repository's folder; parent folders are made.
        options: what the pipeline computes; requests bring their own least confidence.
        backend: where the graphs of the Python model run, and with how many threads.
        layout: what the repository contains.
        progress: called with one line at each step.

    Raises:
        BundleError: the bundle is missing, damaged or newer, or another one than expected.
        InputError: random weights that are not allowed, an option that does not fit, or the output exists.
        EngineError: a graph has no plan that the server loads.
    """
    layout, progress, target = layout or RepositoryOptions(), progress or silent, Path(output).absolute()
    _check_layout(layout)
    if backend.name not in BACKENDS:
        raise InputError(f"unknown back-end {backend.name!r}; choose one of: {', '.join(BACKENDS)}")
    found = find_bundle(bundle, expect=options.expect)
    check_trained(found, allow_random_weights=options.allow_random_weights)
    options.pipeline_options(found.spec)  # refuses an unknown variant or mode now, not in the server
    _check_target(target, found, overwrite=layout.overwrite)
    plans = (
        choose_plans(found, layout.server_version, layout.compute_capability)
        if layout.graphs and layout.server_version is not None
        else {}
    )
    with report_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_draft_folder(target) as draft:
            _write_python_model(draft, found, options, backend, layout, progress)
            for graph, plan in plans.items():
                progress(f"copying the plan of {graph}")
                _write_graph_model(draft, found, graph, plan)
            models = tuple(_describe(each, plans) for each in sorted(draft.iterdir()))
            _check_target(target, found, overwrite=layout.overwrite)  # it may have appeared meanwhile
            place_folder(draft, target)
    return RepositoryReport(path=target, bundle_sha256=found.manifest.sha256, models=models)


def _check_layout(layout: RepositoryOptions) -> None:
    at = layout.bundle_at
    if at is not None and not (PurePosixPath(at).is_absolute() and at.isprintable()):
        raise InputError(f"got the bundle's path {at!r}, expected an absolute one, as the server sees it")
    if layout.graphs and layout.server_version is None:
        raise InputError(
            "plans load only with the TensorRT that built them; name the server with --server-version, such "
            "as 25.10-trtllm-python-py3, or the version of its TensorRT"
        )
    if not layout.graphs and (layout.server_version or layout.compute_capability):
        raise InputError("--server-version and --compute-capability choose plans; add --graphs")


def _check_target(target: Path, bundle: Bundle, *, overwrite: bool) -> None:
    """Refuse a place where anything is but, with `overwrite`, a repository of ours and nothing else."""
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise InputError(f"{target} exists; choose another place, or allow overwriting (--overwrite)")
    ours = {MODEL_NAME, *(f"{MODEL_NAME}_{graph}" for graph in bundle.manifest.graphs)}
    folders = list(target.iterdir()) if target.is_dir() and not target.is_symlink() else []
    written = all(each.name in ours and _is_written(each / "config.pbtxt") for each in folders)
    if not folders or not written:
        raise InputError(
            f"{target} is not (only) a repository of refdiff; it is not modified, choose another place"
        )


def _is_written(config: Path) -> bool:
    return config.is_file() and config.read_bytes().startswith(_MARK.encode())


def _write_python_model(
    draft: Path,
    bundle: Bundle,
    options: RunOptions,
    backend: BackendOptions,
    layout: RepositoryOptions,
    progress: Progress,
) -> None:
    folder = draft / MODEL_NAME / MODEL_VERSION
    folder.mkdir(parents=True)
    write_file(folder / "model.py", _MODEL)
    if layout.bundle_at is None:
        progress("copying the bundle")
        _copy_bundle(bundle, folder / BUNDLE_FOLDER)
    parameters = {
        "bundle": layout.bundle_at or BUNDLE_FOLDER,
        "sha256": bundle.manifest.sha256,
        "variant": options.variant,
        "mode": options.mode,
        "allow_random_weights": str(options.allow_random_weights).lower(),
        "backend": backend.name,
        "threads": "" if backend.threads is None else str(backend.threads),
    }
    _write_config(draft / MODEL_NAME, python_config(parameters))


def python_config(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration of the Python model, whose parameters `triton_model` reads."""
    return {
        "name": MODEL_NAME,
        "backend": "python",
        "max_batch_size": 0,
        "input": [each.config() for each in INPUTS],
        "output": [each.config() for each in OUTPUTS],
        "instance_group": [{"kind": "KIND_MODEL", "count": 1}],  # it chooses its device itself
        "parameters": [
            {"key": key, "value": {"string_value": value}} for key, value in parameters.items() if value
        ],
    }


def _copy_bundle(bundle: Bundle, target: Path) -> None:
    """Copy the files that the manifest lists, and verify the copy; plans, which are the device's, stay."""
    for name in (*bundle.manifest.files, MANIFEST_NAME):
        copied = target / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, copied)
        sync(copied)
    if open_bundle(target).manifest.sha256 != bundle.manifest.sha256:
        raise InputError(f"{bundle.path} changed while it was copied; repeat the command")


def _write_graph_model(draft: Path, bundle: Bundle, graph: str, plan: ChosenPlan) -> None:
    name = f"{MODEL_NAME}_{graph}"
    copied = draft / name / MODEL_VERSION / "model.plan"
    copied.parent.mkdir(parents=True)
    shutil.copyfile(plan.path, copied)
    sync(copied)
    if hash_file(copied) != plan.metadata.plan_sha256:
        raise InputError(f"{plan.path} changed while it was copied; repeat the command")
    record, profiles = bundle.manifest.graphs[graph], plan.metadata.identity.shapes
    group: dict[str, Any] = {"kind": "KIND_GPU", "count": 1}
    if len(profiles) > 1:  # by default Triton uses the first alone
        group["profile"] = [str(number) for number in range(len(profiles))]
    config = {
        "name": name,
        "platform": "tensorrt_plan",
        "max_batch_size": 0,
        "input": [_graph_tensor(each) for each in record.inputs],
        "output": [_graph_tensor(each) for each in record.outputs],
        "instance_group": [group],
    }
    _write_config(draft / name, config)


_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32", "int64": "TYPE_INT64"}


def _graph_tensor(tensor: TensorSpec) -> dict[str, Any]:
    dims = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "data_type": _TYPES[tensor.dtype], "dims": dims}


def _describe(folder: Path, plans: Mapping[str, ChosenPlan]) -> ModelFolder:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    plan = plans.get(folder.name.removeprefix(f"{MODEL_NAME}_"))
    if plan is None:
        return ModelFolder(name=folder.name, backend="python", size_bytes=size)
    identity = plan.metadata.identity
    return ModelFolder(
        name=folder.name,
        backend="tensorrt_plan",
        size_bytes=size,
        tensorrt=identity.version,
        targets=identity.targets,
    )


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    write_file(folder / "config.pbtxt", _MARK + "".join(_lines(config)))


_ENUMS = frozenset({"data_type", "kind"})
"""Fields whose value is a name without quotes."""


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield the fields in protobuf's text format; a list is a repeated field."""
    for name, value in fields.items():
        if isinstance(value, list) and all(isinstance(each, int) for each in value):
            yield f"{indent}{name}: {value}\n"
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield f"{indent}{name} {{\n"
                yield from _lines(each, f"{indent}  ")
                yield f"{indent}}}\n"
            else:
                yield f"{indent}{name}: {each if name in _ENUMS else _scalar(each)}\n"


def _scalar(value: Sequence[str] | int | bool) -> str:  # noqa: FBT001 - a field's value
    return json.dumps(value, ensure_ascii=False)
