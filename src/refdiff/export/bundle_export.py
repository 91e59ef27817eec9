"""Write a model stack as a bundle of checked graphs (docs/architecture.md, "A bundle").

Each model is loaded, run in torch on the pipeline's feeds, written and released; then its graphs are run in
ONNX Runtime on the same feeds and compared with torch. If one graph is outside its limit, no bundle appears.
At most one model is in memory, and its weights only once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.contracts.bundle import GraphRecord, Manifest, write_bundle
from refdiff.contracts.graphs import GraphSpec, graph_contract
from refdiff.contracts.heap import trim_heap
from refdiff.contracts.parity import Parity
from refdiff.contracts.progress import Progress, Step
from refdiff.contracts.session import Array
from refdiff.errors import InputError
from refdiff.export.answer import record_answer
from refdiff.export.onnx_export import data_name, export_graph
from refdiff.export.pipeline_feeds import STAGES, PipelineFeeds, Stage
from refdiff.export.sam_graphs import prompt_vectors
from refdiff.export.torch_records import Record, Recorder, check_graph, error_limit
from refdiff.export.wrappers import TorchSessions, clip_positions, wrap
from refdiff.passes.early_exit import cut_taps

if TYPE_CHECKING:
    from refdiff.contracts.stack import ModelStack

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
"""Packages whose version can change the exported graphs, or how they were checked."""


GraphExporter = Callable[[Any, GraphSpec, Path], Path]
"""Writes a torch module as a graph into a folder and returns the graph's path, as `export_graph` does."""


def export_bundle(
    stack: ModelStack,
    output: Path,
    *,
    feeds: PipelineFeeds,
    progress: Progress,
    overwrite: bool = False,
    exporter: GraphExporter = export_graph,
    limit: Callable[[str], float] = error_limit,
) -> Manifest:
    """Export all graphs of a stack, checked, as the bundle `output`.

    Args:
        stack: the original modules; each is released once its graphs are written.
        output: the bundle's folder.
        feeds: runs every graph. A graph is compared on one run of each shape; one is kept as its golden
            record.
        progress: receives one line at each step, and each graph's error.
        overwrite: replace an existing bundle.
        exporter: writes each graph.
        limit: returns the largest error of a graph, as a share of its range.

    Raises:
        InputError: a graph was not fed, or the output cannot be written.
        GateError: a graph is outside its limit; nothing is written.
    """
    contract = graph_contract(stack.spec)
    with write_bundle(output, overwrite=overwrite) as writer:
        golden: dict[str, Record] = {}
        measured: dict[str, dict[str, Parity]] = {}
        for stage in STAGES:
            progress(f"{stage.name}: loading, and running the pipeline in torch")
            if stage.name == "sam":
                prompts = prompt_vectors(stack.sam)
                writer.write_prompt_vectors(prompts)
            if stage.name == "clip":
                positions = clip_positions(stack)
                writer.write_clip_positions(positions)
            records = _record_stage(stack, stage, feeds)
            golden |= {name: _golden_run(name, runs) for name, runs in records.items()}
            count = _Count(progress, done=len(measured), total=len(contract))
            measured |= _export_stage(stack, stage, writer.path, records, count, exporter, limit)
        writer.write_golden({name: _golden_tensors(graph, golden[name]) for name, graph in contract.items()})
        writer.write_tokenizer(stack.tokenizer_json)
        progress("recording the golden answer")
        answer = record_answer(
            writer.path,
            stack.spec,
            tokenizer_json=stack.tokenizer_json,
            positions=positions,
            prompts=prompts,
        )
        writer.write_golden_answer(answer)
        progress("hashing")
        return writer.describe(
            spec=stack.spec,
            precision="fp32",
            sources=stack.sources,
            versions=_versions(),
            graphs={
                name: _graph_record(graph, writer.path, measured[name]) for name, graph in contract.items()
            },
            random_seed=stack.random_seed,
        )


class _Count:
    """Reports lines with the number of graphs that are finished."""

    def __init__(self, progress: Progress, *, done: int, total: int) -> None:
        self._progress, self._done, self._total = progress, done, total

    def __call__(self, line: str) -> None:
        self._progress(Step(line, done=self._done, total=self._total, unit="graphs"))

    def add_graph(self, line: str) -> None:
        """Count one more graph, and report the line."""
        self._done += 1
        self(line)


def _record_stage(stack: ModelStack, stage: Stage, feeds: PipelineFeeds) -> dict[str, tuple[Record, ...]]:
    """Run a stage in torch; return graph -> its runs, one of each shape."""
    recorder = Recorder(TorchSessions(stack), graph_contract(stack.spec))
    feeds.run_stage(stage.name, recorder)
    recorder.close()
    records = {name: recorder.records(name) for name in stage.graph_names}
    missing = [name for name, runs in records.items() if not runs]
    if missing:
        raise InputError(f"the feeds never ran {', '.join(missing)}; give feeds that run every graph")
    return records


def _export_stage(
    stack: ModelStack,
    stage: Stage,
    folder: Path,
    records: Mapping[str, Sequence[Record]],
    progress: _Count,
    exporter: GraphExporter,
    limit: Callable[[str], float],
) -> dict[str, dict[str, Parity]]:
    """Write and check one model's graphs; return graph -> output -> parity."""
    contract, measured = graph_contract(stack.spec), {}
    for component, names in stage.graphs:
        for name in names:
            progress(f"{name}: exporting")
            _write_graph(stack, contract[name], folder, exporter)
        _release(stack, component)
        for name in names:
            progress(f"{name}: comparing with torch")
            path = folder / f"{name}.onnx"
            measured[name] = check_graph(path, contract[name], records[name], limit=limit(name))
            error = max(output.error for output in measured[name].values())
            progress.add_graph(f"{name}: {error:.1e} of its range from torch")
    return measured


def _golden_run(name: str, runs: Sequence[Record]) -> Record:
    """Return the smallest run, but of SAM's decoder the first: the automatic mode's."""
    return runs[0] if name == "sam_decoder" else min(runs, key=lambda run: run.size_bytes)


def _golden_tensors(graph: GraphSpec, record: Record) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Return feeds and the graph's results; a record of `unet_taps` holds those of the full pass too.

    For `sam_masks` one prompt is enough, and all that a golden record has room for.
    """
    record = record.first_row() if graph.name == "sam_masks" else record
    return record.feeds, {name: record.results[name] for name in graph.output_names}


def _release(stack: ModelStack, component: str) -> None:
    """Release a module, and return its memory to the system before the next one is loaded."""
    stack.release(component)
    gc.collect()  # modules and their exported programs refer to themselves
    trim_heap()


def _write_graph(stack: ModelStack, graph: GraphSpec, folder: Path, exporter: GraphExporter) -> Path:
    if graph.name == "unet_taps":
        return cut_taps(folder / "unet.onnx", graph, cut_after=stack.spec.diffusion.cut_after)
    return exporter(wrap(stack, graph.name), graph, folder)


def _graph_record(graph: GraphSpec, folder: Path, measured: Mapping[str, Parity]) -> GraphRecord:
    data = data_name("unet" if graph.name == "unet_taps" else graph.name)
    files = tuple(name for name in (f"{graph.name}.onnx", data) if (folder / name).exists())
    return GraphRecord(
        files=files, precision="fp32", inputs=graph.inputs, outputs=graph.outputs, parity=dict(measured)
    )


def _versions() -> Mapping[str, str]:
    installed = {dist.name.lower(): dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}
