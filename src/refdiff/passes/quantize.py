"""A weight in eight bits: one symmetric scale per output channel, values computed while they are written.

Explicit Q/DQ as a pass over an fp32 graph: eight-bit weights, eight-bit data inputs, the rest as it was.

Before `HalfPrecision`, which then types what is left. One pair of nodes per tensor serves all its quantised
readers; who is not quantised keeps reading the tensor itself, residual sums above all.
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
from refdiff.passes.half_precision import converted
from refdiff.passes.quantizable import is_embedding, output_axis, quantisable


@dataclass(frozen=True)
class EightBits:
    """One of the two types."""

    dtype: ir.DataType
    largest: float
    """Of its values; int8's -128 is not used, so that both signs reach equally far."""

    @property
    def farthest(self) -> float:
        """The largest reach that a float16 step serves."""
        return float(np.finfo(np.float16).max) * self.largest


TYPES: dict[QuantizedType, EightBits] = {
    "int8": EightBits(ir.DataType.INT8, 127.0),
    "fp8": EightBits(ir.DataType.FLOAT8E4M3FN, 448.0),
}

_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)


def scale_of(reach: NDArray[np.floating], bits: EightBits) -> Float:
    """The step for tensors that reach so far: a float16 value, rounded up, so that nothing new is cut off.

    Infinite for a reach that no float16 step serves.
    """
    wanted = np.maximum(np.asarray(reach, np.float64) / bits.largest, _SMALLEST)
    with np.errstate(over="ignore"):
        nearest = wanted.astype(np.float16)
        above = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest.astype(np.float64) < wanted, above, nearest).astype(np.float32)


def in_eight_bits(
    tensor: ir.TensorProtocol, bits: EightBits, axis: int, *, name: str
) -> tuple[ir.LazyTensor, Float]:
    """A float32 weight in eight bits, and its scales [channels].

    Args:
        tensor: the weight.
        bits: the type.
        axis: of its output channels.
        name: of the new tensor.

    Raises:
        InputError: it holds NaN, infinity, or values too large for any float16 step.
    """
    scale = scale_of(_reach(tensor.numpy(), axis), bits)
    if not np.isfinite(scale).all():
        raise InputError(
            f"the weight {tensor.name} holds NaN or values beyond {bits.farthest:.3g}, "
            "expected finite ones; mend the model first"
        )
    across = [-1 if index == axis else 1 for index in range(len(tensor.shape))]

    def convert(values: Float) -> Array:
        return rounded(values / scale.reshape(across), bits)

    return converted(tensor, bits.dtype, convert, name=name), scale


def rounded(steps: Float, bits: EightBits) -> Array:
    """Numbers of steps, as eight-bit values."""
    limited = np.clip(steps, -bits.largest, bits.largest)
    if bits.dtype == ir.DataType.INT8:
        limited = np.rint(limited)
    result: Array = limited.astype(bits.dtype.numpy())
    return result


def _reach(values: Float, axis: int) -> Float:
    others = tuple(index for index in range(values.ndim) if index != axis)
    reach: Float = np.maximum(values.max(axis=others), -values.min(axis=others))
    return reach


OPSET = 19
"""The first whose QuantizeLinear takes half precision and eight-bit floats."""


class Quantise:
    """Puts the named nodes of one graph into eight bits.

    Args:
        quantised: type and ranges.
        nodes: names of the nodes; each is `quantisable`.
        weights_alone: those of them whose data input stays as it is.
    """

    def __init__(
        self, quantised: Quantized, nodes: Collection[str], weights_alone: Collection[str] = ()
    ) -> None:
        self._ranges = quantised.ranges
        self._bits = TYPES[quantised.type]
        self._type = quantised.type
        self._nodes = frozenset(nodes)
        self._weights_alone = frozenset(weights_alone)
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
                if node.name not in self._weights_alone:
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
