"""A model stack in, a checked bundle out (DESIGN §4).

Every graph is exported, run in ONNX Runtime on inputs the real pipeline recorded, and compared with its torch
module; one graph outside its tolerance, and no bundle appears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refdiff.contracts.bundle import GraphRecord, Manifest, writing_bundle
from refdiff.contracts.feeds import check_feeds
from refdiff.contracts.graphs import GraphSpec, graph_contract
from refdiff.contracts.session import Array
from refdiff.errors import InputError
from refdiff.export.early_exit import cut_taps
from refdiff.export.gate import check_graph, tolerance
from refdiff.export.onnx_export import data_name, export_graph
from refdiff.export.torch_sessions import TorchSession
from refdiff.export.wrappers import clip_positions, wrap

if TYPE_CHECKING:
    from refdiff.contracts.stack import ModelStack

PRECISIONS = ("fp32",)
"""What this export can write; other precisions will be passes over an fp32 bundle."""

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


def export_bundle(
    stack: ModelStack,
    output: Path,
    *,
    examples: Mapping[str, Sequence[Mapping[str, Array]]],
    progress: Callable[[str], None],
    precision: str = "fp32",
    overwrite: bool = False,
) -> Manifest:
    """Export all graphs of a stack, checked, as the bundle `output`.

    Args:
        stack: the original modules.
        output: where the bundle will be.
        examples: graph -> feeds (input name -> array) recorded from the real pipeline (see `recording`). The
            graph is compared on all of them; the last is kept as its golden record.
        progress: told one line at the start of each graph, and its error when it is done.
        precision: "fp32".
        overwrite: replace a bundle that is there.

    Raises:
        InputError: another precision, an example missing or misshapen, or the output cannot be written.
        GateError: a graph is outside its tolerance; nothing is left behind.
    """
    if precision not in PRECISIONS:
        raise InputError(f"got precision {precision!r}, but only fp32 exists so far; use --precision fp32")
    contract = graph_contract(stack.spec)
    _check_examples(contract, examples)
    rounded = {name: [_rounded(feeds) for feeds in recorded] for name, recorded in examples.items()}
    positions = clip_positions(stack)
    with writing_bundle(output, overwrite=overwrite) as draft:
        golden = {}
        for number, (name, graph) in enumerate(contract.items(), start=1):
            progress(f"[{number}/{len(contract)}] {name}: exporting")
            path = _write(stack, graph, draft.path)
            original, errors = TorchSession(graph, wrap(stack, name)), []
            for feeds in rounded[name]:
                results = original.run(feeds)
                errors.append(check_graph(path, graph, feeds, results, limit=tolerance(precision, name)))
                golden[name] = (feeds, results)
            progress(f"[{number}/{len(contract)}] {name}: {max(errors):.1e} of its range from torch")
        draft.write_golden(golden)
        draft.write_tokenizer(stack.tokenizer_json)
        draft.write_clip_positions(positions)
        return draft.describe(
            spec=stack.spec,
            precision=precision,
            sources=stack.sources,
            versions=_versions(),
            graphs={name: _record(graph, draft.path, precision) for name, graph in contract.items()},
        )


def _rounded(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Feeds at half-precision values: the record compresses, and a half-precision graph takes the same."""
    return {
        key: value.astype(np.float16).astype(np.float32) if value.dtype == np.float32 else value
        for key, value in feeds.items()
    }


def _check_examples(
    contract: Mapping[str, GraphSpec], examples: Mapping[str, Sequence[Mapping[str, Array]]]
) -> None:
    missing = [name for name in contract if not examples.get(name)]
    if missing:
        raise InputError(f"no recorded inputs for {', '.join(missing)}; record a run that uses every graph")
    for name, graph in contract.items():
        for feeds in examples[name]:
            check_feeds(graph, feeds)


def _write(stack: ModelStack, graph: GraphSpec, folder: Path) -> Path:
    if graph.name == "unet_taps":
        return cut_taps(folder / "unet.onnx", graph, cut_after=stack.spec.diffusion.cut_after)
    return export_graph(wrap(stack, graph.name), graph, folder)


def _record(graph: GraphSpec, folder: Path, precision: str) -> GraphRecord:
    data = data_name("unet" if graph.name == "unet_taps" else graph.name)
    files = tuple(name for name in (f"{graph.name}.onnx", data) if (folder / name).exists())
    return GraphRecord(files=files, precision=precision, inputs=graph.inputs, outputs=graph.outputs)


def _versions() -> dict[str, str]:
    installed = {dist.name.lower(): dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}
