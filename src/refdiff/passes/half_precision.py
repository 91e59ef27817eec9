"""Weights that are converted while they are written: one tensor in memory at a time (FIELD §1).

Half precision as a pass over an fp32 graph: typed tensors and casts, nothing left to a builder.

Every node is either in half precision or in single precision (DESIGN §5). A cast stands where a tensor passes
from one to the other, once per tensor; inputs and outputs keep the contract's types. Weights become half
precision while they are written, each in the types its readers want.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from refdiff.contracts.recipe import Half
from refdiff.contracts.session import Array
from refdiff.errors import InputError

SMALL_BYTES = 1 << 14
"""What is written inside the ONNX file is smaller; onnx_ir wraps errors that arise while it writes there."""


_SAFE = 65504.0
"""No finite value below it becomes infinite, in neither type."""

_PART = 1 << 18
"""Values that are cast together: they and their result stay in a core's cache."""


def converted(
    tensor: ir.TensorProtocol, dtype: ir.DataType, convert: Callable[[Array], Array], *, name: str
) -> ir.LazyTensor:
    """A tensor of the same shape whose values are computed when they are asked for, and not kept."""

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(convert(tensor.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def in_half(tensor: ir.TensorProtocol, dtype: ir.DataType, *, name: str) -> ir.TensorProtocol:
    """A float32 tensor in half precision; a small one is converted now.

    Raises:
        InputError: a finite value becomes infinite; of a large tensor, when it is written.
    """

    def convert(values: NDArray[np.float32]) -> Array:
        half = _cast(values, dtype)
        # A NaN or an infinity makes these false too, and is looked at closely: it may have been there before.
        if not (values.max(initial=0.0) < _SAFE and values.min(initial=0.0) > -_SAFE):
            lost = np.isinf(half) & np.isfinite(values)
            if lost.any():
                raise InputError(
                    f"{tensor.name} holds {np.abs(values[lost]).max():.6g}, more than {dtype.name} can; "
                    "keep its nodes in fp32 (refdiff audit finds them)"
                )
        return half

    if tensor.nbytes < SMALL_BYTES:
        return ir.tensor(convert(tensor.numpy()), dtype=dtype, name=name)
    return converted(tensor, dtype, convert, name=name)


def _cast(values: NDArray[np.float32], dtype: ir.DataType) -> Array:
    """The values in another type; large arrays in parts, one on each core: numpy casts to half slowly."""
    half: Array = np.empty(values.shape, dtype.numpy())
    source, target = values.reshape(-1), half.reshape(-1)

    def cast(start: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(target[start : start + _PART], source[start : start + _PART], casting="unsafe")

    if source.size <= _PART:
        cast(0)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as cores:
            list(cores.map(cast, range(0, source.size, _PART)))
    return half


Weights = Literal["stored", "cast"]

HALF_TYPES: dict[Half, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

OPSETS: dict[Half, int] = {"fp16": 19, "bf16": 22}
"""19 is the first whose QuantizeLinear takes half precision, 22 the first whose Conv takes bfloat16."""

SINGLE = ir.DataType.FLOAT

_LARGE_BYTES = 512
"""A cast in the graph takes about a hundred bytes of its file."""

_INNER_GRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}

_SINGLE_INPUTS = {"Resize": (1, 2)}
"""Operator -> inputs that are float32 by the operator's definition."""

EITHER = frozenset({"Cast", "Shape", "Size"})
"""Operators that read any type: a cast before them would only lose digits."""

_TYPED_ALONE = frozenset({"Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"})
"""Operators whose result has the type an attribute says; they stay in single precision."""


class HalfPrecision:
    """Turns the nodes of one graph, but for its islands, to half precision.

    Args:
        half: which of the two 16-bit types.
        islands: names of the nodes that stay in single precision; see `islands.closed`.
        half_weights: those of them whose weights are stored in half precision and cast in the graph.
        weights: "stored" writes half-precision weights; "cast" leaves them in their file and casts them in
            the graph: the same arithmetic, for trials.
    """

    def __init__(
        self,
        half: Half,
        islands: Collection[str],
        *,
        half_weights: Collection[str] = (),
        weights: Weights = "stored",
    ) -> None:
        self._half = half
        self._type = HALF_TYPES[half]
        self._islands = frozenset(islands)
        self._half_weights = frozenset(half_weights)
        self._weights = weights
        self._casts: dict[tuple[int, ir.DataType], ir.Value] = {}

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place, and return it.

        Raises:
            InputError: a node holds graphs of its own (If, Loop, Scan): their tensors are out of sight here.
        """
        graph, self._casts = model.graph, {}
        nodes = list(graph)
        _check_flat(nodes)
        wanted = {id(node): self._type_of(node) for node in nodes}
        floats = {id(value): value for node in nodes for value in _floats(node)}
        for node in nodes:
            self._retype_outputs(node, wanted[id(node)])
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is not None and id(value) in floats and node.op_type not in EITHER:
                    single = index in _SINGLE_INPUTS.get(node.op_type, ())
                    dtype = SINGLE if single else wanted[id(node)]
                    thin = node.name in self._half_weights and _large_weight(value)
                    used = self._through_half(graph, value) if thin else self._as_type(graph, value, dtype)
                    node.replace_input_with(index, used)
        self._restore_outputs(graph)
        _drop_unread(graph)
        model.opset_imports[""] = max(model.opset_imports[""], OPSETS[self._half])
        return model

    def _type_of(self, node: ir.Node) -> ir.DataType:
        return SINGLE if node.name in self._islands or node.op_type in _TYPED_ALONE else self._type

    def _retype_outputs(self, node: ir.Node, dtype: ir.DataType) -> None:
        for value in node.outputs:
            if value.dtype == SINGLE:
                # A new type: setting `dtype` changes an object that other tensors, or a clone's, may share.
                value.type = ir.TensorType(dtype)
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", int(dtype))

    def _as_type(self, graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value itself, or its one copy of that type."""
        if value.dtype == dtype:
            return value
        key = (id(value), dtype)
        if key not in self._casts:
            stored = value.is_initializer() and self._weights == "stored"
            self._casts[key] = (
                self._stored(graph, value, dtype)
                if stored
                else _half_cast(graph, value, dtype, name=self._cast_name())
            )
        return self._casts[key]

    def _cast_name(self) -> str:
        """Short: a bundle has hundreds of them."""
        return f"cast/{len(self._casts)}"

    def _through_half(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """A weight in single precision, with the digits of half precision."""
        half = self._as_type(graph, value, self._type)
        key = (id(half), SINGLE)
        if key not in self._casts:
            self._casts[key] = _half_cast(graph, half, SINGLE, of=half, name=self._cast_name())
        return self._casts[key]

    def _stored(self, graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A half-precision copy of a weight; the original goes when nobody reads it any more."""
        name = f"{value.name}.{self._half}"
        tensor = in_half(_constant(value), dtype, name=name)
        copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor)
        graph.register_initializer(copy)
        return copy

    def _restore_outputs(self, graph: ir.Graph) -> None:
        """Outputs computed in half precision leave as float32, under their own names."""
        for index, value in enumerate(graph.outputs):
            if value.dtype == self._type:
                single = self._as_type(graph, value, SINGLE)
                name, value.name = value.name, f"{value.name}.{self._half}"
                graph.outputs[index], single.name = single, name


def _floats(node: ir.Node) -> Iterator[ir.Value]:
    """Float32 tensors that a node reads or makes."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype == SINGLE:
            yield value


def _large_weight(value: ir.Value) -> bool:
    """Whether storing it in half precision saves more than its cast costs."""
    return value.is_initializer() and _constant(value).nbytes >= _LARGE_BYTES


def _check_flat(nodes: list[ir.Node]) -> None:
    for node in nodes:
        if {attribute.type for attribute in node.attributes.values()} & _INNER_GRAPHS:
            raise InputError(
                f"{node.name} ({node.op_type}) holds a graph of its own, expected a flat graph; "
                "export without control flow"
            )


def _half_cast(
    graph: ir.Graph,
    value: ir.Value,
    dtype: ir.DataType,
    *,
    name: str,
    of: ir.Value | None = None,
) -> ir.Value:
    """A new cast right behind the value's producer, or at the start of the graph.

    What a cast of the graph's own made is cast from that one's source, unless `of` says from what: an integer
    keeps its digits.
    """
    label = f"{value.name}.{'fp32' if dtype == SINGLE else dtype.name.lower()}"
    producer = value.producer()
    made = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    source = of or made
    node = ir.Node(
        "",
        "Cast",
        [source],
        attributes=[ir.AttrInt64("to", int(dtype))],
        name=name,
    )
    node.outputs[0].name = label
    node.outputs[0].shape = value.shape
    node.outputs[0].type = ir.TensorType(dtype)
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]


def _constant(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise ValueError(f"initializer {value.name} has no value")
    return value.const_value


def _drop_unread(graph: ir.Graph) -> None:
    """Weights and casts whose readers all want the other type."""
    for node in [node for node in graph if node.op_type == "Cast"]:
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
