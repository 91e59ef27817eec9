"""Write attentions as the operator that ONNX Runtime's CUDA provider computes in one kernel.

In the three exported nodes the logits go to memory and back, several times where something is added to them.
com.microsoft.MultiHeadAttention reads queries, keys and values with all heads side by side, and what is added
to the logits as its attention bias. On a GPU it chooses among several kernels: flash attention without a
bias, memory-efficient attention with one whose rows are aligned, or else products and softmax.

Replaced are attentions [images, heads, q, width], with a factor or a sum between product and softmax, and
those without an axis of heads, as in SAM's decoder: one head; where all prompts read the keys of one image,
the prompts' queries become one row. The operator has one type for everything; its softmax is in single
precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from refdiff.passes.attention_operator import find_attention
from refdiff.passes.channels_last_norms import DOMAIN, KERNEL_TYPES
from refdiff.passes.rewriting import Row, constant, maker, only_reader, origin

_BY_PLACE = (0, 2, 1, 3)
"""Order of axes between [b, heads, places, width] and [b, places, heads, width]."""


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """The operands of softmax(scale * query x keys + bias) x values."""

    query: ir.Value
    keys: ir.Value
    """Already transposed: [b, heads, width, k]."""
    values: ir.Value
    bias: ir.Value | None
    scale: float
    mixing: ir.Node
    """The product with the values."""


class MultiHeadAttention:
    """Replace the attentions of a graph; `count` is their number in the last call."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place and return it; its tensors must have types and shapes."""
        softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
        found = [each for node in softmaxes if (each := _find(node)) is not None and _has_kernel(each)]
        for attention in found:
            _replace(model.graph, attention)
        self.count = len(found)
        if found:
            model.opset_imports[DOMAIN] = 1
        return model


def _find(softmax: ir.Node) -> _Attention | None:
    found = find_attention(softmax)
    if found is not None:
        product, mixing, bias, scale = found.product, found.mixing, found.mask, 1.0
    else:
        scaled = _scaled_product(softmax)
        if scaled is None:
            return None
        product, mixing, scale = scaled
        bias = None
    query, keys = product.inputs
    values = mixing.inputs[1]
    if query is None or keys is None or values is None:
        return None
    return _Attention(query=query, keys=keys, values=values, bias=bias, scale=scale, mixing=mixing)


def _scaled_product(softmax: ir.Node) -> tuple[ir.Node, ir.Node, float] | None:
    """Return product, mixing and factor of an attention whose product is divided by, or times, a number."""
    scaling, mixing = maker(softmax.inputs[0]), only_reader(softmax)
    if scaling is None or mixing is None or scaling.op_type not in ("Div", "Mul"):
        return None
    product, factor = maker(scaling.inputs[0]), constant(scaling.inputs[1])
    if factor is None or factor.size != 1 or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    if product is None or (product.op_type, mixing.op_type) != ("MatMul", "MatMul"):
        return None
    apart = only_reader(product) is not scaling or only_reader(scaling) is not softmax
    if apart or maker(mixing.inputs[0]) is not softmax:
        return None
    number = float(factor.item())
    return product, mixing, number if scaling.op_type == "Mul" else 1 / number


def _has_kernel(found: _Attention) -> bool:
    """Return whether the operator can compute an attention, as far as types and sizes are known."""
    operands = (found.query, found.keys, found.values)
    dtype, shapes = found.query.dtype, [value.shape for value in operands]
    if dtype not in KERNEL_TYPES or {value.dtype for value in operands} != {dtype}:
        return False
    query, keys, values = shapes
    if query is None or keys is None or values is None or not len(query) == len(keys) == len(values):
        return False
    if len(query) == 3:
        shared = (keys[0] == 1) == (values[0] == 1) and (query[0] != 1 or keys[0] == 1)
        return shared and found.bias is None and isinstance(query[2], int) and isinstance(values[2], int)
    if len(query) != 4 or len({size[0] == 1 for size in (query, keys, values)}) != 1:
        return False
    heads = {size[1] for size in (query, keys, values)}
    static = isinstance(query[1], int) and isinstance(values[3], int)
    return len(heads) == 1 and static and _bias_fits(found.bias, query[2], keys[3])


def _bias_fits(bias: ir.Value | None, queries: object, keys: object) -> bool:
    """Return whether a bias [1 or b, 1 or heads, q, k] has a row for each query and a column for each key."""
    if bias is None:
        return True
    if bias.shape is None or len(bias.shape) != 4:
        return False
    pairs = zip(list(bias.shape)[2:], (queries, keys), strict=True)
    return all(
        size == wanted if isinstance(size, int) and isinstance(wanted, int) else size != 1
        for size, wanted in pairs
    )


def _replace(graph: ir.Graph, found: _Attention) -> None:
    name, flat = str(found.mixing.name), len(found.query.shape or ()) == 3
    orders: Sequence[tuple[int, ...]] = (
        ((0, 1, 2), (0, 2, 1), (0, 1, 2)) if flat else (_BY_PLACE, (0, 3, 1, 2), _BY_PLACE)
    )
    operands = (found.query, found.keys, found.values)
    rows = [
        _in_order(graph, value, order, f"{name}/{side}")
        for value, order, side in zip(operands, orders, ("q", "k", "v"), strict=True)
    ]
    folded = flat and found.keys.shape is not None and found.keys.shape[0] == 1
    for row in () if flat else rows:
        row.reshape(0, 0, -1)
    if folded:
        rows[0].reshape(1, -1, _size(found.query, 2))
    bias = None
    if found.bias is not None:
        rows.append(Row(graph, found.bias, f"{name}/bias"))
        rows[-1].cast(found.query.dtype or ir.DataType.FLOAT)
        bias = rows[-1].value
    out = Row(graph, rows[0].value, name)
    heads = 1 if flat else _size(found.query, 1)
    others = (rows[1].value, rows[2].value, *(() if bias is None else (None, None, bias)))
    out.add("MultiHeadAttention", *others, domain=DOMAIN, num_heads=heads, scale=found.scale)
    if folded:
        rows.append(_unfolded_shape(graph, found, name))
        out.add("Reshape", rows[-1].value)
    for row in rows:
        graph.insert_before(found.mixing, list(row.nodes))
    result = found.mixing.outputs[0]
    if not flat:
        out.reshape(0, 0, heads, _size(found.values, 3))
        result = _by_place(found.mixing) or result
        if result is found.mixing.outputs[0]:
            out.add("Transpose", perm=list(_BY_PLACE))
    out.replace(result)


def _in_order(graph: ir.Graph, value: ir.Value, order: Sequence[int], name: str) -> Row:
    """Return a row that transposes a value, and the value before its own transposition where there is one."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        before = list(producer.attributes["perm"].as_ints())
        value, order = producer.inputs[0], [before[axis] for axis in order]
    row = Row(graph, value, name)
    if list(order) != sorted(order):
        row.add("Transpose", perm=list(order))
    return row


def _unfolded_shape(graph: ir.Graph, found: _Attention, name: str) -> Row:
    """Return a row that makes the result's shape: images and places of the query, width of the values."""
    row = Row(graph, found.query, f"{name}/shape")
    row.add("Shape", start=0, end=2)
    row.value.type = ir.TensorType(ir.DataType.INT64)
    row.add("Concat", row.ints(_size(found.values, 2)), axis=0)
    return row


def _by_place(mixing: ir.Node) -> ir.Value | None:
    """Return the result with places before heads, if that is all that is made of it."""
    reader = only_reader(mixing)
    direct = reader is not None and origin(reader.inputs[0]) is mixing.outputs[0]
    if reader is None or not direct or reader.op_type != "Transpose":
        return None
    turned = tuple(reader.attributes["perm"].as_ints()) == _BY_PLACE
    return reader.outputs[0] if turned and reader.inputs[0] is mixing.outputs[0] else None


def _size(value: ir.Value, axis: int) -> int:
    """Return a static size, which `_has_kernel` has checked."""
    size = value.shape[axis] if value.shape is not None else None
    if not isinstance(size, int):
        raise TypeError(f"{value.name} has no static size on axis {axis}")
    return size
