"""Quantize the named nodes of an fp32 graph to int8 or fp8, with explicit Q/DQ nodes.

Weights get one symmetric scale per output channel, and their values are computed while they are written. The
data input of a quantized node passes through one QuantizeLinear/DequantizeLinear pair, which all quantized
readers of that tensor share; other readers, residual sums above all, keep the tensor itself.

This pass runs before `HalfPrecision`, which then sets the types of the rest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from refdiff.contracts.recipe import Quantized, QuantizedType
from refdiff.contracts.session import Array, Float
from refdiff.errors import InputError
from refdiff.passes.half_precision import convert_lazily
from refdiff.passes.quantizable import is_embedding, output_axis, quantizable_nodes

OPSET = 19
"""The first opset whose QuantizeLinear takes half precision and eight-bit floats."""


@dataclass(frozen=True)
class EightBits:
    """One of the two eight-bit types."""

    dtype: ir.DataType
    largest: float
    """Largest magnitude used; int8's -128 is not, so that both signs have the same range."""

    @property
    def largest_range(self) -> float:
        """The largest range that a float16 scale can express."""
        return float(np.finfo(np.float16).max) * self.largest


TYPES: dict[QuantizedType, EightBits] = {
    "int8": EightBits(ir.DataType.INT8, 127.0),
    "fp8": EightBits(ir.DataType.FLOAT8E4M3FN, 448.0),
}

_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)


def scale_for(ranges: NDArray[np.floating], bits: EightBits) -> Float:
    """Return the scale of each range: a float16 value, rounded up, so that the range is not cut off.

    A range beyond `bits.largest_range` has an infinite scale.
    """
    wanted = np.maximum(np.asarray(ranges, np.float64) / bits.largest, _SMALLEST)
    with np.errstate(over="ignore"):
        nearest = wanted.astype(np.float16)
        above = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest.astype(np.float64) < wanted, above, nearest).astype(np.float32)


def quantize_weight(
    tensor: ir.TensorProtocol, bits: EightBits, axis: int, *, name: str
) -> tuple[ir.LazyTensor, Float]:
    """Return a float32 weight in eight bits, and its scales [channels].

    Args:
        tensor: the weight.
        bits: the type.
        axis: axis of the weight's output channels.
        name: name of the new tensor.

    Raises:
        InputError: the weight holds NaN, infinity, or values too large for any float16 scale.
    """
    scale = scale_for(_channel_maxima(tensor.numpy(), axis), bits)
    if not np.isfinite(scale).all():
        raise InputError(
            f"the weight {tensor.name} holds NaN or values beyond {bits.largest_range:.3g}, "
            "expected finite ones; fix the model first"
        )
    across = [-1 if index == axis else 1 for index in range(len(tensor.shape))]

    def convert(values: Float) -> Array:
        return round_steps(values / scale.reshape(across), bits)

    return convert_lazily(tensor, bits.dtype, convert, name=name), scale


def round_steps(steps: Float, bits: EightBits) -> Array:
    """Round values, in units of their scale, to the eight-bit type, and clip them to its range."""
    limited = np.clip(steps, -bits.largest, bits.largest)
    if bits.dtype == ir.DataType.INT8:
        limited = np.rint(limited)
    result: Array = limited.astype(bits.dtype.numpy())
    return result


def _channel_maxima(values: Float, axis: int) -> Float:
    """Return [channels]: the largest magnitude of each channel along `axis`."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    largest: Float = np.maximum(values.max(axis=others), -values.min(axis=others))
    return largest


class Quantize:
    """Quantize the named nodes of one graph.

    Args:
        quantized: type and ranges.
        nodes: names of the nodes to quantize, without patterns.
        weights_alone: nodes among them whose data input is not quantized.
    """

    def __init__(
        self, quantized: Quantized, nodes: Collection[str], weights_alone: Collection[str] = ()
    ) -> None:
        self._ranges = quantized.ranges
        self._bits = TYPES[quantized.type]
        self._type = quantized.type
        self._nodes = frozenset(nodes)
        self._weights_alone = frozenset(weights_alone)
        self._inputs: dict[int, ir.Value] = {}
        self._weights: dict[tuple[int, int], ir.Value] = {}

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place and return it.

        Raises:
            InputError: a node is not quantizable, a data input has no range or one that no scale can
                express, or a weight is not finite.
        """
        graph, self._inputs, self._weights = model.graph, {}, {}
        self._check_nodes(graph)
        for node in list(graph):
            if node.name not in self._nodes:
                continue
            if is_embedding(node) and node.inputs[0] is not None:
                node.replace_input_with(0, self._quantized_weight(graph, node, node.inputs[0]))
            else:
                data, weight = node.inputs[0], node.inputs[1]
                if data is None or weight is None:
                    raise InputError(f"{node.name} has no data input or weight; correct the recipe")
                if node.name not in self._weights_alone:
                    node.replace_input_with(0, self._quantized_input(graph, data))
                node.replace_input_with(1, self._quantized_weight(graph, node, weight))
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
        model.opset_imports[""] = max(model.opset_imports[""], OPSET)
        return model

    def _check_nodes(self, graph: ir.Graph) -> None:
        quantizable = frozenset(quantizable_nodes(graph))
        for node in graph:
            if node.name in self._nodes and node.name not in quantizable:
                raise InputError(
                    f"the recipe quantizes {node.name} ({node.op_type}), expected a product, convolution "
                    "or embedding with a constant weight; take it out of the recipe's nodes"
                )

    def _quantized_input(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """Return the tensor after its Q/DQ pair, which is inserted on the first call."""
        if id(value) in self._inputs:
            return self._inputs[id(value)]
        range_ = self._ranges.get(value.name or "")
        if range_ is None:
            raise InputError(f"the recipe has no range for {value.name}; calibrate again")
        step = scale_for(np.array(range_), self._bits)
        if not np.isfinite(step):
            raise InputError(
                f"the recipe's range of {value.name} is {range_:.6g}, expected "
                f"{self._bits.largest_range:.3g} at most; correct it, or calibrate again"
            )
        scale = self._constant(graph, f"{value.name}.scale", step)
        zero = self._zero(graph)
        first = _node("QuantizeLinear", [value, scale, zero], f"{value.name}/Q")
        second = _node("DequantizeLinear", [first.outputs[0], scale, zero], f"{value.name}/DQ")
        _set_type(first, self._bits.dtype, value)
        _set_type(second, ir.DataType.FLOAT, value)
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], [first, second])
        else:
            graph.insert_after(producer, [first, second])
        self._inputs[id(value)] = second.outputs[0]
        return second.outputs[0]

    def _quantized_weight(self, graph: ir.Graph, node: ir.Node, weight: ir.Value) -> ir.Value:
        """Return the weight after its DequantizeLinear, which is inserted on the first call."""
        axis = output_axis(node)
        key = (id(weight), axis)
        if key not in self._weights:
            if weight.const_value is None:
                raise InputError(f"{node.name}: {weight.name} is no constant; correct the recipe")
            again = any(id(weight) == each for each, _ in self._weights)
            stem = f"{weight.name}.axis{axis}" if again else f"{weight.name}"  # read along both its axes
            name = f"{stem}.{self._type}"
            tensor, scales = quantize_weight(weight.const_value, self._bits, axis, name=name)
            stored = ir.Value(
                name=name, shape=weight.shape, type=ir.TensorType(self._bits.dtype), const_value=tensor
            )
            graph.register_initializer(stored)
            scale = self._constant(graph, f"{stem}.scale", scales)
            dequantize = _node("DequantizeLinear", [stored, scale], f"{stem}/DQ", axis=axis)
            _set_type(dequantize, ir.DataType.FLOAT, weight)
            graph.insert_before(node, dequantize)
            self._weights[key] = dequantize.outputs[0]
        return self._weights[key]

    def _zero(self, graph: ir.Graph) -> ir.Value:
        """Return the zero point that all tensors share; its type is also the quantized type."""
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


def _set_type(node: ir.Node, dtype: ir.DataType, like: ir.Value) -> None:
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), like.shape
