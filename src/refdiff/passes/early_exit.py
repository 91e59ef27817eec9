"""Cut `unet_taps` out of the written `unet`: the nodes that its taps need (METHOD §4.8).

`unet_taps` reads its weights from `unet`'s data file, so the weights the two graphs share are stored once.
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
"""The child of the UNet in the name of one of its nodes or weights."""
_CHILDREN = ("down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")
"""In the order of execution."""


def cut_taps(full: Path, graph: GraphSpec, *, cut_after: str) -> Path:
    """Write `<graph>.onnx` next to `full`, sharing its external data.

    Args:
        full: the written `unet.onnx`.
        graph: the contract of the cut graph.
        cut_after: the last UNet child that the taps need: `up_blocks.1`, `mid_block` or `down_blocks.2`.

    Returns:
        The path of the cut graph.

    Raises:
        InputError: the cut graph still holds a node that runs after `cut_after`, or a UNet has no such child.
    """
    model = ir.load(full)
    outputs = {value.name: value for value in model.graph.outputs}
    kept = [outputs[name] for name in graph.output_names]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    RemoveUnusedNodesPass()(model)
    late = next(_names_after(model.graph, cut_after), None)
    if late is not None:
        raise InputError(f"{graph.name} still needs {late!r}, which runs after {cut_after}; correct the spec")
    path = full.with_name(f"{graph.name}.onnx")
    for value in model.graph.initializers.values():  # their tensors hold type and shape
        value.type, value.shape = None, None
    ir.save(model, path)  # tensors in a data file stay there
    check_contract(path, graph)
    return path


def _names_after(graph: ir.Graph, cut_after: str) -> Iterator[str]:
    """Yield the names of nodes and weights of UNet children behind `cut_after`."""
    last = _execution_order(cut_after)
    for name in [name for node in graph if (name := node.name)] + list(graph.initializers):
        child = _CHILD.search(name)
        if child and _execution_order(child[1].replace("/", ".")) > last:
            yield name


def _execution_order(child: str) -> tuple[int, int]:
    """Return a sort key for a UNet child: its kind, then its index."""
    kind, _, index = child.partition(".")
    if kind not in _CHILDREN:
        raise InputError(
            f"got {child!r} to cut after, expected one of {', '.join(_CHILDREN)}, with its index"
        )
    return _CHILDREN.index(kind), int(index or 0)
