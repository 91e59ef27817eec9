"""Compute large attentions in ONNX Runtime's fused kernel, for checks of a single graph.

At a 128x128 latent one head-wise logit tensor of SD 1.5 takes 8.6 GB per image (METHOD §4.7). TensorRT fuses
the three exported nodes by itself; ONNX Runtime on a CPU writes the logits out unless it gets its own
operator, MultiHeadAttention, which computes the same in blocks. Attentions with at least `MIN_BYTES` of
logits whose product goes straight into the softmax are replaced. SAM's are not: they add a bias in between.

In a half-precision graph the operator computes in single precision on rounded inputs, and its result is
rounded. As in a device's fused kernel, the logits are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

MIN_BYTES = 1 << 30
"""Logits of one attention from which it is replaced: those of two images at SD 1.5's 512 px."""

_DOMAIN = "com.microsoft"


class FuseAttention:
    """Replace the large attentions of a graph by MultiHeadAttention.

    Args:
        batch: size of the axes that the graph leaves open.
        min_bytes: size of the logits from which an attention is replaced.
    """

    def __init__(self, *, batch: int, min_bytes: int = MIN_BYTES) -> None:
        self._batch = batch
        self._min_bytes = min_bytes

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place and return it; its tensors must have types and shapes."""
        softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
        large = [node for node in softmaxes if _logit_bytes(node, self._batch) >= self._min_bytes]
        replaced = [node for node in large if _fuse(model.graph, node)]
        if replaced:
            RemoveUnusedNodesPass()(model)
            model.opset_imports[_DOMAIN] = 1
        return model


def _logit_bytes(softmax: ir.Node, batch: int) -> int:
    """Return the size of logits [b, heads, q, k] in fp32; 0 for a softmax over another shape."""
    shape = softmax.inputs[0].shape if softmax.inputs[0] is not None else None
    if shape is None or len(shape) != 4:
        return 0
    return 4 * math.prod(size if isinstance(size, int) else batch for size in shape)


def _fuse(graph: ir.Graph, softmax: ir.Node) -> bool:
    """Replace product, softmax, product by the fused operator; return False for any other pattern."""
    product, mixed = _producer(softmax, 0), _only_reader(softmax)
    if product is None or mixed is None or (product.op_type, mixed.op_type) != ("MatMul", "MatMul"):
        return False
    query, scale = _split_scale(product)
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
    heads, width = _head_sizes(split[0])
    flat = [_node("Reshape", [value, _constant(graph, softmax, "flat", (0, 0, -1))]) for value in split]
    single = [_cast(node.outputs[0], ir.DataType.FLOAT) for node in flat]
    fused = ir.Node(
        _DOMAIN,
        "MultiHeadAttention",
        [node.outputs[0] for node in single],
        attributes=[ir.AttrInt64("num_heads", heads), ir.AttrFloat32("scale", scale)],
    )
    shape = _constant(graph, softmax, "split", (0, 0, heads, width))
    unflat = _node("Reshape", [fused.outputs[0], shape])
    turned = ir.Node("", "Transpose", [unflat.outputs[0]], attributes=[ir.AttrInt64s("perm", [0, 2, 1, 3])])
    result = _cast(turned.outputs[0], mixed.outputs[0].dtype or ir.DataType.FLOAT)
    result.outputs[0].shape = mixed.outputs[0].shape
    graph.insert_before(mixed, [*flat, *single, fused, unflat, turned, result])
    ir.convenience.replace_all_uses_with(mixed.outputs[0], result.outputs[0])
    return True


def _split_scale(product: ir.Node) -> tuple[ir.Node | None, float]:
    """Return the producer of the unscaled Q and its scale, which is 1 if Q is scaled before the split."""
    query = _producer(product, 0)
    if query is None or query.op_type != "Mul":
        return query, 1.0
    factor = query.inputs[1].const_value if query.inputs[1] is not None else None
    if factor is None or factor.size != 1:
        return None, 1.0
    return _producer(query, 0), float(factor.numpy().item())


def _head_sizes(value: ir.Value | None) -> tuple[int, int]:
    """Return number and width of the heads: the last two axes, which are static in every attention."""
    heads, width = (size for size in value.shape[2:] if isinstance(size, int))  # type: ignore[union-attr,index]
    return heads, width


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    """Return the node that makes an input, looking through casts."""
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    return _producer(producer, 0) if producer is not None and producer.op_type == "Cast" else producer


def _only_reader(node: ir.Node) -> ir.Node | None:
    """Return the only node that reads a result, looking through casts; None if there are several."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1:
        return None
    reader = uses[0].node
    return _only_reader(reader) if reader.op_type == "Cast" else reader


def _before_transpose(source: ir.Node | None, order: Sequence[int]) -> ir.Value | None:
    """Return the input of a transposition of that order; None for any other node."""
    if source is None or source.op_type != "Transpose":
        return None
    return source.inputs[0] if tuple(source.attributes["perm"].as_ints()) == tuple(order) else None


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.Node("", "Cast", [value], attributes=[ir.AttrInt64("to", int(dtype))])
    node.outputs[0].type = ir.TensorType(dtype)
    return node


def _node(operator: str, inputs: Sequence[ir.Value | None]) -> ir.Node:
    return ir.Node("", operator, inputs)


def _constant(graph: ir.Graph, node: ir.Node, name: str, values: Sequence[int]) -> ir.Value:
    """Return an integer constant of the graph, named after `node`."""
    tensor = ir.tensor(np.array(values, np.int64), name=f"{node.name}/bounded/{name}")
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape([len(values)]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=tensor,
    )
    return graph.initializers.setdefault(str(tensor.name), value)
