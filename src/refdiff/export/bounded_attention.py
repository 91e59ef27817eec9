"""A copy of a graph for the check alone, in which large attentions run in ONNX Runtime's fused kernel.

At a 128x128 latent one head-wise logit tensor of SD 1.5 takes 8.6 GB per picture (METHOD §4). TensorRT fuses
the exported three nodes by itself; ONNX Runtime on a CPU writes the logits out unless it is given its own
operator, MultiHeadAttention, which computes the same in blocks. Attentions of `BYTES` and more are replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

BYTES = 1 << 30
"""Logits of one attention from which it is replaced: at SD 1.5's 512 px, those of two pictures."""

_DOMAIN = "com.microsoft"


@contextmanager
def bounded_copy(path: Path, *, batch: int) -> Iterator[Path]:
    """The graph's own path, or that of a copy beside it (sharing its weights) while the block runs."""
    model = ir.load(path)
    large = [node for node in model.graph if node.op_type == "Softmax" and _bytes(node, batch) >= BYTES]
    replaced = [node for node in large if _fuse(model.graph, node)]
    if not replaced:
        yield path
        return
    RemoveUnusedNodesPass()(model)
    model.opset_imports[_DOMAIN] = 1
    copy = path.with_name(f".{path.stem}.bounded.onnx")
    try:
        ir.save(model, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _bytes(softmax: ir.Node, batch: int) -> int:
    """Of the logits [b, heads, q, k]; 0 where they are of another kind."""
    shape = softmax.inputs[0].shape if softmax.inputs[0] is not None else None
    if shape is None or len(shape) != 4:
        return 0
    sizes = [batch if index == 0 else size for index, size in enumerate(shape)]
    return 4 * int(np.prod([size for size in sizes if isinstance(size, int)]))


def _fuse(graph: ir.Graph, softmax: ir.Node) -> bool:
    """Replace product, softmax, product by the fused operator; False where they look otherwise."""
    product = _producer(softmax, 0)
    uses = list(softmax.outputs[0].uses())
    mixed = uses[0].node if len(uses) == 1 else None
    if product is None or mixed is None or (product.op_type, mixed.op_type) != ("MatMul", "MatMul"):
        return False
    query, scale = _unscaled(product)
    split = [
        _before_transpose(producer, order)
        for producer, order in (
            (query, (0, 2, 1, 3)),
            (_producer(product, 1), (0, 2, 3, 1)),
            (_producer(mixed, 1), (0, 2, 1, 3)),
        )
    ]
    if any(value is None for value in split) or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return False
    heads, width = _heads(split[0])
    flat = [_node("Reshape", [value, _ints(graph, softmax, "flat", (0, 0, -1))]) for value in split]
    fused = ir.Node(
        _DOMAIN,
        "MultiHeadAttention",
        [node.outputs[0] for node in flat],
        attributes=[ir.AttrInt64("num_heads", heads), ir.AttrFloat32("scale", scale)],
    )
    shape = _ints(graph, softmax, "split", (0, 0, heads, width))
    unflat = _node("Reshape", [fused.outputs[0], shape])
    turned = ir.Node("", "Transpose", [unflat.outputs[0]], attributes=[ir.AttrInt64s("perm", [0, 2, 1, 3])])
    graph.insert_before(mixed, [*flat, fused, unflat, turned])
    ir.convenience.replace_all_uses_with(mixed.outputs[0], turned.outputs[0])
    return True


def _unscaled(product: ir.Node) -> tuple[ir.Node | None, float]:
    """What Q was before its scale, and the scale: 1 where Q was scaled before its heads were split."""
    query = _producer(product, 0)
    if query is None or query.op_type != "Mul":
        return query, 1.0
    factor = query.inputs[1].const_value if query.inputs[1] is not None else None
    if factor is None or factor.size != 1:
        return None, 1.0
    return _producer(query, 0), float(factor.numpy().item())


def _heads(value: ir.Value | None) -> tuple[int, int]:
    """How many heads of which width: the last two axes, which are static in every attention."""
    heads, width = (size for size in value.shape[2:] if isinstance(size, int))  # type: ignore[union-attr,index]
    return heads, width


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index]
    return None if value is None else value.producer()


def _before_transpose(source: ir.Node | None, order: Sequence[int]) -> ir.Value | None:
    """What a transposition of that order turned."""
    if source is None or source.op_type != "Transpose":
        return None
    return source.inputs[0] if tuple(source.attributes["perm"].as_ints()) == tuple(order) else None


def _node(operator: str, inputs: Sequence[ir.Value | None]) -> ir.Node:
    return ir.Node("", operator, inputs)


def _ints(graph: ir.Graph, node: ir.Node, name: str, values: Sequence[int]) -> ir.Value:
    """A constant of the graph."""
    tensor = ir.tensor(np.array(values, np.int64), name=f"{node.name}/bounded/{name}")
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape([len(values)]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=tensor,
    )
    return graph.initializers.setdefault(str(tensor.name), value)
