"""Explicit Q/DQ as a pass over an fp32 graph: eight-bit weights, eight-bit data inputs, the rest as it was.

Before `HalfPrecision`, which then types what is left. One pair of nodes per tensor serves all its quantised
readers; who is not quantised keeps reading the tensor itself, residual sums above all.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from refdiff.calibration.eight_bit_weights import TYPES, in_eight_bits, scale_of
from refdiff.calibration.quantisable import is_embedding, output_axis, quantisable
from refdiff.contracts.recipe import Quantised
from refdiff.errors import InputError

OPSET = 19
"""The first whose QuantizeLinear takes half precision and eight-bit floats."""


class Quantise:
    """Puts the named nodes of one graph into eight bits.

    Args:
        quantised: type and ranges.
        nodes: names of the nodes; each is `quantisable`.
    """

    def __init__(self, quantised: Quantised, nodes: Collection[str]) -> None:
        self._ranges = quantised.ranges
        self._bits = TYPES[quantised.type]
        self._type = quantised.type
        self._nodes = frozenset(nodes)
        self._inputs: dict[int, ir.Value] = {}
        self._weights: dict[tuple[int, int], ir.Value] = {}

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place, and return it.

        Raises:
            InputError: a node that is not quantisable, a data input without a range or with one that no
                scale serves, or a weight that is not finite.
        """
        graph, self._inputs, self._weights = model.graph, {}, {}
        self._check_nodes(graph)
        for node in list(graph):
            if node.name not in self._nodes:
                continue
            if is_embedding(node) and node.inputs[0] is not None:
                node.replace_input_with(0, self._weight(graph, node, node.inputs[0]))
            else:
                data, weight = node.inputs[0], node.inputs[1]
                if data is None or weight is None:
                    raise InputError(f"{node.name} has no data input or weight; correct the recipe")
                node.replace_input_with(0, self._input(graph, data))
                node.replace_input_with(1, self._weight(graph, node, weight))
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
        model.opset_imports[""] = max(model.opset_imports[""], OPSET)
        return model

    def _check_nodes(self, graph: ir.Graph) -> None:
        can = frozenset(quantisable(graph))
        for node in graph:
            if node.name in self._nodes and node.name not in can:
                raise InputError(
                    f"the recipe quantises {node.name} ({node.op_type}), expected a product, convolution "
                    "or embedding with a constant weight; take it out of the recipe's nodes"
                )

    def _input(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """The tensor after one pair of Q/DQ."""
        if id(value) in self._inputs:
            return self._inputs[id(value)]
        reach = self._ranges.get(value.name or "")
        if reach is None:
            raise InputError(f"the recipe has no range for {value.name}; calibrate again")
        step = scale_of(np.array(reach), self._bits)
        if not np.isfinite(step):
            raise InputError(
                f"the recipe's range of {value.name} is {reach:.6g}, expected {self._bits.farthest:.3g} at "
                "most; correct it, or calibrate again"
            )
        scale = self._constant(graph, f"{value.name}.scale", step)
        zero = self._zero(graph)
        first = _node("QuantizeLinear", [value, scale, zero], f"{value.name}/Q")
        second = _node("DequantizeLinear", [first.outputs[0], scale, zero], f"{value.name}/DQ")
        _typed(first, self._bits.dtype, value)
        _typed(second, ir.DataType.FLOAT, value)
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], [first, second])
        else:
            graph.insert_after(producer, [first, second])
        self._inputs[id(value)] = second.outputs[0]
        return second.outputs[0]

    def _weight(self, graph: ir.Graph, node: ir.Node, weight: ir.Value) -> ir.Value:
        """The weight, dequantised from its eight-bit copy."""
        axis = output_axis(node)
        key = (id(weight), axis)
        if key not in self._weights:
            if weight.const_value is None:
                raise InputError(f"{node.name}: {weight.name} is no constant; correct the recipe")
            again = any(id(weight) == each for each, _ in self._weights)
            stem = f"{weight.name}.axis{axis}" if again else f"{weight.name}"  # read along both its axes
            name = f"{stem}.{self._type}"
            tensor, scales = in_eight_bits(weight.const_value, self._bits, axis, name=name)
            stored = ir.Value(
                name=name, shape=weight.shape, type=ir.TensorType(self._bits.dtype), const_value=tensor
            )
            graph.register_initializer(stored)
            scale = self._constant(graph, f"{stem}.scale", scales)
            back = _node("DequantizeLinear", [stored, scale], f"{stem}/DQ", axis=axis)
            _typed(back, ir.DataType.FLOAT, weight)
            graph.insert_before(node, back)
            self._weights[key] = back.outputs[0]
        return self._weights[key]

    def _zero(self, graph: ir.Graph) -> ir.Value:
        """The one zero point there is; it also says which eight bits."""
        name = f"zero.{self._type}"
        if name in graph.initializers:
            return graph.initializers[name]
        return self._constant(graph, name, np.zeros((), self._bits.dtype.numpy()))

    def _constant(self, graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(value)
        return value


def _node(operator: str, inputs: list[ir.Value], name: str, axis: int | None = None) -> ir.Node:
    attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
    node = ir.Node("", operator, inputs, attributes=attributes, name=name)
    node.outputs[0].name = name
    return node


def _typed(node: ir.Node, dtype: ir.DataType, like: ir.Value) -> None:
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), like.shape
