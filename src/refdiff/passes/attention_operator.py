"""Write attentions as ONNX's own operator, so that TensorRT fuses each or refuses to build.

TensorRT finds attentions by their nodes: a product, a softmax, a product. If it does not recognize one, or
has no kernel for it, the plan is only slower and larger. `Attention` (opset 23, read by TensorRT from 10.14
on) is computed by one kernel, or the build fails. Bundles keep the three nodes, which every version reads;
this pass runs at build time (`refdiff build --attention-op`).

It rewrites attentions in half precision with separate axes for images and heads and at most one mask, which
is added to the product. It leaves those that TensorRT has no kernel for, whichever way they are written: in
single precision, with heads narrower than 16 or wider than 256, with values of another width, and a single
head of a single image. As operators, TensorRT-RTX 1.7.1 refused those that were tried: single precision,
heads of 8, 264 and 512, values of another width, one head of one image.

The scale of the logits stays where it is, in front of the product. ONNX's `softmax_precision` is left out,
because TensorRT refuses it. Its kernel is the one it uses for the three nodes, with the softmax in single
precision; another program that runs the rewritten graph may compute the softmax in half precision.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from refdiff.errors import InputError
from refdiff.passes.rewriting import maker, only_reader
from refdiff.passes.round_half import HALVES

OPSET = 23
"""The first opset with `Attention`."""

HEAD_SIZES = range(16, 257)
"""Widths of a head that TensorRT has a kernel for; it pads those between multiples of 8."""

WIDENED = frozenset(
    {
        *("Cast", "Constant", "ConstantOfShape", "Flatten", "Identity", "Pad", "Reshape", "Shape", "Size"),
        *("Squeeze", "Transpose", "Unsqueeze", "Equal", "Resize", "Conv", "ConvTranspose", "AveragePool"),
        *("GlobalAveragePool", "MaxPool", "InstanceNormalization", "HardSigmoid", "HardSwish", "Cos", "Sin"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
)
"""Operators whose versions from opset 18 to 23 differ only by more types, modes or optional attributes."""


class UseAttentionOperator:
    """Replace product, softmax, product by `Attention`, and raise the graph's opset if there are any.

    Args:
        types: types of the products that are rewritten.
    """

    def __init__(self, *, types: Collection[ir.DataType] = HALVES) -> None:
        self._types = frozenset(types)

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place and return it; its tensors must have types and ranks.

        Raises:
            InputError: it has attentions to rewrite, and an operator that changes its meaning up to this
                opset.
        """
        softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
        found = [
            each for node in softmaxes if (each := find_attention(node)) and each.has_kernel(self._types)
        ]
        if found:
            _raise_opset(model)
            for attention in found:
                _replace(model.graph, attention)
            RemoveUnusedNodesPass()(model)
        return model


@dataclass(frozen=True)
class Attention:
    """The three nodes of an attention, and what is added to its product."""

    product: ir.Node
    softmax: ir.Node
    mixing: ir.Node
    mask: ir.Value | None

    def has_kernel(self, types: Collection[ir.DataType]) -> bool:
        """Return whether TensorRT has a kernel for it, as far as types and sizes are known."""
        query, value = self.product.inputs[0], self.mixing.inputs[1]
        if query is None or value is None or query.dtype not in types or value.dtype != query.dtype:
            return False
        if self.mask is not None and self.mask.dtype != query.dtype:
            return False
        if query.shape is None or value.shape is None or len(query.shape) != 4 or len(value.shape) != 4:
            return False
        images, heads, _, width = query.shape
        values = value.shape[3]
        if isinstance(width, int) and (width not in HEAD_SIZES or values not in (width, None)):
            return False
        return (images, heads) != (1, 1)


def find_attention(softmax: ir.Node) -> Attention | None:
    """Return the attention around a softmax over the last axis; None for any other."""
    mixing, before = only_reader(softmax), maker(softmax.inputs[0])
    if mixing is None or before is None or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    if mixing.op_type != "MatMul" or maker(mixing.inputs[0]) is not softmax:
        return None
    product, mask = _split_sum(before) if before.op_type == "Add" else (before, None)
    if product.op_type != "MatMul":
        return None
    following = softmax if product is before else before
    if only_reader(product) is not following or only_reader(before) is not softmax:
        return None
    return Attention(product, softmax, mixing, mask)


def _split_sum(node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """Return the product of a sum and what is added to it; the sum itself where no summand is a product."""
    for index in (0, 1):
        value = node.inputs[index]
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type == "MatMul":
            return producer, node.inputs[1 - index]
    return node, None


def _replace(graph: ir.Graph, found: Attention) -> None:
    query, keys = found.product.inputs[0], found.product.inputs[1]
    values, out = found.mixing.inputs[1], found.mixing.outputs[0]
    key, turning = _turned(keys)
    inputs = [query, key, values] if found.mask is None else [query, key, values, found.mask]
    attention = ir.Node(
        "", "Attention", inputs, attributes=[ir.AttrFloat32("scale", 1.0)], name=found.softmax.name
    )
    found.softmax.name = f"{found.softmax.name}/replaced"
    result = attention.outputs[0]
    result.name, out.name = out.name, f"{out.name}/replaced"
    result.shape, result.type = out.shape, out.type
    graph.insert_before(found.mixing, [*turning, attention])
    ir.convenience.replace_all_uses_with(out, result, replace_graph_outputs=True)


def _turned(keys: ir.Value | None) -> tuple[ir.Value | None, list[ir.Node]]:
    """Return keys [b, h, k, d] for the product's right side [b, h, d, k], and the nodes that make them."""
    producer = None if keys is None else keys.producer()
    order = [0, 1, 3, 2]
    if producer is not None and producer.op_type == "Transpose":
        keys, before = producer.inputs[0], producer.attributes["perm"].as_ints()
        order = [before[axis] for axis in order]
    if order == sorted(order):
        return keys, []
    node = ir.Node("", "Transpose", [keys], attributes=[ir.AttrInt64s("perm", order)])
    if keys is not None:
        node.outputs[0].type = keys.type
    return node.outputs[0], [node]


def _raise_opset(model: ir.Model) -> None:
    have = model.opset_imports[""]
    if have >= OPSET:
        return
    for node in model.graph:
        if node.domain in ("", "ai.onnx") and node.op_type not in WIDENED:
            before, after = (onnx.defs.get_schema(node.op_type, opset, "") for opset in (have, OPSET))
            if before.since_version != after.since_version:
                raise InputError(
                    f"node {node.name} ({node.op_type}) may mean something else in opset {OPSET}, which "
                    f"Attention needs, than in the graph's {have}; leave --attention-op out"
                )
    model.opset_imports[""] = OPSET
