"""Half precision that is executed, on a processor whose kernels have none.

ONNX Runtime's CPU kernels of products, convolutions and most arithmetic take float32 alone; it casts around
them, drops the casts between neighbours, and so computes a half-precision graph in single precision. Here
every half-precision node gets casts of its own, which the runtime may not drop: the node computes in float32
and its result is rounded to half precision, as a tensor core does with its float32 accumulator.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from refdiff.passes.fuse_attention import bound_attentions
from refdiff.passes.graph_files import load_typed

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_SINGLE = ir.DataType.FLOAT


def rounded_model(path: Path, *, batch: int | None = None) -> bytes:
    """A graph, serialised, with every half-precision result rounded; its weights stay in their file.

    Args:
        path: the ONNX file.
        batch: of the runs to come, where large attentions may be computed in one operator that rounds
            its result alone (`bounded_attention`); None rounds everything.
    """
    model = load_typed(path)
    if batch is not None:
        bound_attentions(model, batch=batch)
    round_every_node(model)
    return bytes(ir.serde.serialize_model(model).SerializeToString())


def round_every_node(model: ir.Model) -> None:
    """Change the graph in place; without half-precision tensors nothing changes."""
    graph, single = model.graph, dict[int, ir.Value]()
    for node in list(graph):
        if node.op_type == "Cast":
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in HALVES:
                if id(value) not in single:
                    single[id(value)] = _cast(graph, value, _SINGLE)
                node.replace_input_with(index, single[id(value)])
        for value in node.outputs:
            if value.dtype in HALVES:
                _round(graph, node, value)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let `value` be float32, and everybody who reads it read its rounding; so does the graph's output."""
    half, name = value.dtype or _SINGLE, value.name
    readers = list(value.uses())
    # A new type: the one it has belongs to the graph this one was cloned from as well.
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


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    node = ir.Node("", "Cast", [value], attributes=[ir.AttrInt64("to", int(dtype))])
    node.outputs[0].name = f"{value.name}/single"
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]
