"""`unet_taps`: the part of `unet` that its taps need, cut out of the written graph (METHOD §4, early exit).

The cut keeps the nodes its output is computed from and reads its weights from `unet`'s own data file: the two
graphs hold the same nodes, and the weights are on the disk once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from refdiff.contracts.graphs import GraphSpec
from refdiff.errors import InputError
from refdiff.passes.graph_files import check_contract

_CHILD = re.compile(
    r"(?:^|[./])(down_blocks[./]\d+|mid_block|up_blocks[./]\d+|conv_norm_out|conv_out)(?=[./])"
)
"""A UNet's child in the name of one of its nodes or weights."""
_WAYS = ("down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")
"""In the order of execution."""


def cut_taps(full: Path, graph: GraphSpec, *, cut_after: str) -> Path:
    """Write `<graph>.onnx` beside `full`, sharing its external data.

    Args:
        full: the written `unet.onnx`.
        graph: the contract of the cut graph.
        cut_after: the last UNet child the taps need: `up_blocks.1`, `mid_block` or `down_blocks.2`.

    Raises:
        InputError: the cut still holds something that runs after `cut_after`, or a UNet has no such child.
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
    for value in model.graph.initializers.values():  # their tensors say the same
        value.type, value.shape = None, None
    ir.save(model, path)  # tensors that lie in a data file stay there
    check_contract(path, graph)
    return path


def _after(graph: ir.Graph, cut_after: str) -> Iterator[str]:
    """Names of nodes and weights that belong to a UNet child behind `cut_after`."""
    last = _turn(cut_after)
    for name in [name for node in graph if (name := node.name)] + list(graph.initializers):
        child = _CHILD.search(name)
        if child and _turn(child[1].replace("/", ".")) > last:
            yield name


def _turn(child: str) -> tuple[int, int]:
    """Where a child of the UNet comes in the order of execution."""
    way, _, index = child.partition(".")
    if way not in _WAYS:
        raise InputError(f"got {child!r} to cut after, expected one of {', '.join(_WAYS)}, with its index")
    return _WAYS.index(way), int(index or 0)
