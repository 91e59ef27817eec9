"""`unet_taps`: the part of `unet` that its taps need, cut out of the written graph (METHOD §4, early exit).

The cut keeps the nodes its output is computed from and reads its weights from `unet`'s own data file: the two
graphs hold the same nodes, and the weights are on the disk once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from refdiff.contracts.graphs import GraphSpec
from refdiff.errors import InputError
from refdiff.export.onnx_export import check_contract

_UP_BLOCKS = "up_blocks."


def cut_taps(full: Path, graph: GraphSpec, *, cut_after: str) -> Path:
    """Write `<graph>.onnx` beside `full`, sharing its external data.

    Args:
        full: the written `unet.onnx`.
        graph: the contract of the cut graph.
        cut_after: the last UNet child the taps need, `up_blocks.1` for instance.

    Raises:
        InputError: the cut still holds something that runs after `cut_after`.
    """
    model = ir.load(full)
    wanted = {value.name: value for value in model.graph.outputs}
    kept = [wanted[name] for name in graph.output_names]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    RemoveUnusedNodesPass()(model)
    late = next(_after(model.graph, cut_after), None)
    if late is not None:
        raise InputError(f"{graph.name} still needs {late!r}, which runs after {cut_after}; correct the spec")
    path = full.with_name(f"{graph.name}.onnx")
    ir.save(model, path)  # tensors that lie in a data file stay there
    check_contract(path, graph)
    return path


def _after(graph: ir.Graph, cut_after: str) -> Iterator[str]:
    """Names of nodes and weights that belong to a UNet child behind `cut_after`."""
    late = ["conv_norm_out", "conv_out"]
    if cut_after.startswith(_UP_BLOCKS):
        blocks = range(int(cut_after.removeprefix(_UP_BLOCKS)) + 1, 10)
        late += [f"{_UP_BLOCKS}{index}" for index in blocks]
    names = [name for node in graph if (name := node.name)] + list(graph.initializers)
    for name in names:
        if any(f".{child}." in f".{name}".replace("/", ".") for child in late):
            yield name
