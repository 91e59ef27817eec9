"""A model stack in, a checked bundle out (DESIGN §4).

One model after the other is loaded, rehearsed, written and let go; then every graph is run in ONNX Runtime on
what torch was fed, and compared with what torch answered. One graph outside its tolerance, and no bundle
appears. Never more than one model is in memory, and its weights only once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.contracts.bundle import GraphRecord, Manifest, write_bundle
from refdiff.contracts.graphs import GraphSpec, graph_contract
from refdiff.contracts.parity import Parity
from refdiff.contracts.session import Array, SessionFactory
from refdiff.errors import InputError
from refdiff.export.onnx_export import data_name, export_graph
from refdiff.export.rehearsal import STAGES, Stage
from refdiff.export.verify import OpenGraph, Record, Recorder, check_graph, tolerance
from refdiff.export.wrappers import TorchSessions, clip_positions, wrap
from refdiff.passes.early_exit import cut_taps

if TYPE_CHECKING:
    from refdiff.contracts.stack import ModelStack

PRECISION = "fp32"
"""What this export writes; other precisions are passes over its bundle."""

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
)
"""Packages whose version can change what is exported, or how it was checked."""

Progress = Callable[[str], None]
Play = Callable[[str, SessionFactory], None]
"""Runs the pipeline's steps of a named stage over sessions; see `rehearsal.Rehearsal.play`."""


def export_bundle(
    stack: ModelStack,
    output: Path,
    *,
    rehearse: Play,
    open_graph: OpenGraph,
    progress: Progress,
    overwrite: bool = False,
) -> Manifest:
    """Export all graphs of a stack, checked, as the bundle `output`.

    Args:
        stack: the original modules; each is released once its graphs are written.
        output: where the bundle will be.
        rehearse: runs every graph as the pipeline would. A graph is compared on one run of each shape; the
            smallest is kept as its golden record.
        open_graph: opens a written graph in ONNX Runtime, to be checked.
        progress: told one line at each step, and each graph's error.
        overwrite: replace a bundle that is there.

    Raises:
        InputError: a graph that the rehearsal never ran, or the output cannot be written.
        GateError: a graph is outside its tolerance; nothing is left behind.
    """
    contract = graph_contract(stack.spec)
    with write_bundle(output, overwrite=overwrite) as writer:
        golden: dict[str, Record] = {}
        measured: dict[str, dict[str, Parity]] = {}
        for stage in STAGES:
            progress(f"{stage.name}: loading, and running the pipeline in torch")
            if stage.name == "clip":
                writer.write_clip_positions(clip_positions(stack))
            records = _rehearsed(stack, stage, rehearse)
            golden |= {name: min(runs, key=lambda run: run.size_bytes) for name, runs in records.items()}
            measured |= _export_stage(stack, stage, writer.path, records, open_graph, progress)
        writer.write_golden({name: _answered(graph, golden[name]) for name, graph in contract.items()})
        writer.write_tokenizer(stack.tokenizer_json)
        progress("hashing")
        return writer.describe(
            spec=stack.spec,
            precision=PRECISION,
            sources=stack.sources,
            versions=_versions(),
            graphs={name: _record(graph, writer.path, measured[name]) for name, graph in contract.items()},
            random_seed=stack.random_seed,
        )


def _rehearsed(stack: ModelStack, stage: Stage, rehearse: Play) -> dict[str, tuple[Record, ...]]:
    """Graph -> its runs in torch, one of each shape."""
    recorder = Recorder(TorchSessions(stack), graph_contract(stack.spec))
    rehearse(stage.name, recorder)
    recorder.close()
    records = {name: recorder.records(name) for name in stage.graph_names}
    missing = [name for name, runs in records.items() if not runs]
    if missing:
        raise InputError(
            f"the rehearsal never ran {', '.join(missing)}; rehearse a run that uses every graph"
        )
    return records


def _export_stage(
    stack: ModelStack,
    stage: Stage,
    folder: Path,
    records: Mapping[str, Sequence[Record]],
    open_graph: OpenGraph,
    progress: Progress,
) -> dict[str, dict[str, Parity]]:
    """Write and check one model's graphs. Returns graph -> output -> how close it came."""
    contract, measured = graph_contract(stack.spec), {}
    for component, names in stage.graphs:
        for name in names:
            progress(f"{name}: exporting")
            _write(stack, contract[name], folder)
        _release(stack, component)
        for name in names:
            progress(f"{name}: comparing with torch")
            limit = tolerance(PRECISION, name)
            path = folder / f"{name}.onnx"
            measured[name] = check_graph(
                path, contract[name], records[name], limit=limit, open_graph=open_graph
            )
            error = max(output.error for output in measured[name].values())
            progress(f"{name}: {error:.1e} of its range from torch")
    return measured


def _answered(graph: GraphSpec, record: Record) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Feeds and the graph's own results; a record of `unet_taps` holds the full pass's.

    Of `sam_masks` one prompt is enough, and all that a golden record has room for.
    """
    record = record.first_row() if graph.name == "sam_masks" else record
    return record.feeds, {name: record.results[name] for name in graph.output_names}


def _release(stack: ModelStack, component: str) -> None:
    """Let go of a module, and give its memory back to the system before the next one needs some."""
    stack.release(component)
    gc.collect()  # modules and their exported programs refer to themselves
    with contextlib.suppress(OSError, AttributeError):  # only glibc keeps freed pages, and can be told not to
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _write(stack: ModelStack, graph: GraphSpec, folder: Path) -> Path:
    if graph.name == "unet_taps":
        return cut_taps(folder / "unet.onnx", graph, cut_after=stack.spec.diffusion.cut_after)
    return export_graph(wrap(stack, graph.name), graph, folder)


def _record(graph: GraphSpec, folder: Path, measured: Mapping[str, Parity]) -> GraphRecord:
    data = data_name("unet" if graph.name == "unet_taps" else graph.name)
    files = tuple(name for name in (f"{graph.name}.onnx", data) if (folder / name).exists())
    return GraphRecord(
        files=files, precision=PRECISION, inputs=graph.inputs, outputs=graph.outputs, parity=dict(measured)
    )


def _versions() -> Mapping[str, str]:
    installed = {dist.name.lower(): dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}
