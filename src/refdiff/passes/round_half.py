"""Emulate half precision on a processor whose kernels do not have it.

ONNX Runtime's CPU kernels for products, convolutions and most arithmetic take float32 only; it casts around
them, drops the casts between neighbours, and so computes a half-precision graph in single precision. This
pass gives every half-precision node casts of its own that the runtime may not drop: the node computes in
float32 and its result is rounded to half precision, as a tensor core does with its float32 accumulator.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from refdiff.passes.fuse_attention import FuseAttention
from refdiff.passes.graph_files import load_typed, serialized

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_SINGLE = ir.DataType.FLOAT


def rounded_model(path: Path, *, fuse: FuseAttention | None = None) -> bytes:
    """Return a serialized graph in which every half-precision result is rounded.

    Args:
        path: the ONNX file; weights stay in their data file.
        fuse: applied first: a fused attention rounds only its result. None rounds every result.
    """
    model = load_typed(path)
    if fuse is not None:
        fuse(model)
    RoundHalf()(model)
    return serialized(model, path.parent)


class RoundHalf:
    """Compute every half-precision node in float32 and round its results to half precision."""

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place and return it; a model without half-precision tensors stays the same."""
        graph, single = model.graph, dict[int, ir.Value]()
        for node in list(graph):
            if node.op_type == "Cast":
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype in HALVES:
                    if id(value) not in single:
                        single[id(value)] = _insert_cast(graph, value, _SINGLE)
                    node.replace_input_with(index, single[id(value)])
            for value in node.outputs:
                if value.dtype in HALVES:
                    _round(graph, node, value)
        return model


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Make `value` float32, and let its readers and the graph's outputs read its rounded copy."""
    half, name = value.dtype or _SINGLE, value.name
    readers = list(value.uses())
    # A new type object: the old one may be shared with the graph this one was cloned from.
    value.type, value.name = ir.TensorType(_SINGLE), f"{name}/unrounded"
    cast = ir.Node("", "Cast", [value], attributes=[ir.AttrInt64("to", int(half))])
    rounded = cast.outputs[0]
    rounded.name, rounded.shape, rounded.type = name, value.shape, ir.TensorType(half)
    graph.insert_after(node, cast)
    for use in readers:
        use.node.replace_input_with(use.idx, rounded)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = rounded


def _insert_cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    node = ir.Node("", "Cast", [value], attributes=[ir.AttrInt64("to", int(dtype))])
    node.outputs[0].name = f"{value.name}/single"
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]
