"""Convert an fp32 graph to half precision, with explicit types and casts.

Every node is either in half precision or in single precision (docs/precision.md). A cast stands where a
tensor passes from one to the other, once per tensor; inputs and outputs keep the contract's types. Weights
are converted while they are written, one tensor in memory at a time, each to the types its readers need.
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
"""Smaller weights are converted at once: they are written inside the ONNX file, and onnx_ir wraps errors that
arise while it writes there."""

Weights = Literal["stored", "cast"]

HALF_TYPES: dict[Half, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

OPSETS: dict[Half, int] = {"fp16": 19, "bf16": 22}
"""Opset 19 is the first whose QuantizeLinear takes half precision, 22 the first whose Conv takes bfloat16."""

SINGLE = ir.DataType.FLOAT

_SAFE = 65504.0
"""No finite value below this becomes infinite in either type."""

_CHUNK = 1 << 18
"""Values that are cast together: they and their result fit in a core's cache."""

_LARGE_BYTES = 512
"""Weights from which half-precision storage pays: a cast takes about a hundred bytes of the graph's file."""

_INNER_GRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}

_SINGLE_INPUTS = {"Resize": (1, 2)}
"""Operator -> inputs that are float32 by the operator's definition."""

ANY_TYPE = frozenset({"Cast", "Shape", "Size"})
"""Operators that read any type: a cast before them would only lose digits."""

_TYPED_BY_ATTRIBUTE = frozenset({"Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"})
"""Operators with an attribute for the type of their result; they stay in single precision."""


def convert_lazily(
    tensor: ir.TensorProtocol, dtype: ir.DataType, convert: Callable[[Array], Array], *, name: str
) -> ir.LazyTensor:
    """Return a tensor of the same shape whose values are computed on each read and not kept."""

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(convert(tensor.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def to_half(tensor: ir.TensorProtocol, dtype: ir.DataType, *, name: str) -> ir.TensorProtocol:
    """Return a float32 tensor in half precision; a small one is converted now, a large one when it is read.

    Raises:
        InputError: a finite value becomes infinite; for a large tensor, raised when it is written.
    """

    def convert(values: NDArray[np.float32]) -> Array:
        half = _cast(values, dtype)
        # Also false for NaN and infinity, which may have been there before: then every value is checked.
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
    return convert_lazily(tensor, dtype, convert, name=name)


def _cast(values: NDArray[np.float32], dtype: ir.DataType) -> Array:
    """Cast values; large arrays in chunks on all cores, since numpy casts to half precision slowly."""
    half: Array = np.empty(values.shape, dtype.numpy())
    source, target = values.reshape(-1), half.reshape(-1)

    def cast(start: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(target[start : start + _CHUNK], source[start : start + _CHUNK], casting="unsafe")

    if source.size <= _CHUNK:
        cast(0)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as cores:
            list(cores.map(cast, range(0, source.size, _CHUNK)))
    return half


class HalfPrecision:
    """Convert the nodes of one graph, except those of its fp32 regions, to half precision.

    Args:
        half: which of the two 16-bit types.
        fp32: names of the nodes that stay in single precision; see `keep_fp32.close_regions`.
        half_weights: nodes among them whose weights are stored in half precision and cast in the graph.
        weights: "stored" writes half-precision weights; "cast" keeps them in their file and casts them in
            the graph: the same arithmetic, for trials.
    """

    def __init__(
        self,
        half: Half,
        fp32: Collection[str],
        *,
        half_weights: Collection[str] = (),
        weights: Weights = "stored",
    ) -> None:
        self._half = half
        self._type = HALF_TYPES[half]
        self._fp32 = frozenset(fp32)
        self._half_weights = frozenset(half_weights)
        self._weights = weights
        self._casts: dict[tuple[int, ir.DataType], ir.Value] = {}

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place and return it.

        Raises:
            InputError: a node holds a graph (If, Loop, Scan), whose tensors this pass does not see.
        """
        graph, self._casts = model.graph, {}
        nodes = list(graph)
        _check_flat(nodes)
        types = {id(node): self._type_of(node) for node in nodes}
        floats = {id(value): value for node in nodes for value in _floats(node)}
        for node in nodes:
            self._retype_outputs(node, types[id(node)])
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is not None and id(value) in floats and node.op_type not in ANY_TYPE:
                    single = index in _SINGLE_INPUTS.get(node.op_type, ())
                    dtype = SINGLE if single else types[id(node)]
                    thin = node.name in self._half_weights and _is_large_weight(value)
                    used = self._through_half(graph, value) if thin else self._as_type(graph, value, dtype)
                    node.replace_input_with(index, used)
        self._restore_outputs(graph)
        _drop_unread(graph)
        model.opset_imports[""] = max(model.opset_imports[""], OPSETS[self._half])
        return model

    def _type_of(self, node: ir.Node) -> ir.DataType:
        return SINGLE if node.name in self._fp32 or node.op_type in _TYPED_BY_ATTRIBUTE else self._type

    def _retype_outputs(self, node: ir.Node, dtype: ir.DataType) -> None:
        for value in node.outputs:
            if value.dtype == SINGLE:
                # A new type object: setting `dtype` would change one that other tensors or a clone may share.
                value.type = ir.TensorType(dtype)
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", int(dtype))

    def _as_type(self, graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return the value itself, or its one copy of that type."""
        if value.dtype == dtype:
            return value
        key = (id(value), dtype)
        if key not in self._casts:
            stored = value.is_initializer() and self._weights == "stored"
            self._casts[key] = (
                self._store(graph, value, dtype)
                if stored
                else _insert_cast(graph, value, dtype, name=self._cast_name())
            )
        return self._casts[key]

    def _cast_name(self) -> str:
        """Return the name of the next cast: short, since a bundle has hundreds of them."""
        return f"cast/{len(self._casts)}"

    def _through_half(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """Return a weight in single precision, rounded to half precision."""
        half = self._as_type(graph, value, self._type)
        key = (id(half), SINGLE)
        if key not in self._casts:
            self._casts[key] = _insert_cast(graph, half, SINGLE, source=half, name=self._cast_name())
        return self._casts[key]

    def _store(self, graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a half-precision copy of a weight; the original is dropped once it has no readers."""
        name = f"{value.name}.{self._half}"
        tensor = to_half(_constant(value), dtype, name=name)
        copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor)
        graph.register_initializer(copy)
        return copy

    def _restore_outputs(self, graph: ir.Graph) -> None:
        """Cast outputs computed in half precision to float32, under their own names."""
        for index, value in enumerate(graph.outputs):
            if value.dtype == self._type:
                single = self._as_type(graph, value, SINGLE)
                name, value.name = value.name, f"{value.name}.{self._half}"
                graph.outputs[index], single.name = single, name


def _floats(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the float32 tensors that a node reads or makes."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype == SINGLE:
            yield value


def _is_large_weight(value: ir.Value) -> bool:
    return value.is_initializer() and _constant(value).nbytes >= _LARGE_BYTES


def _check_flat(nodes: list[ir.Node]) -> None:
    for node in nodes:
        if {attribute.type for attribute in node.attributes.values()} & _INNER_GRAPHS:
            raise InputError(
                f"{node.name} ({node.op_type}) holds a graph of its own, expected a flat graph; "
                "export without control flow"
            )


def _insert_cast(
    graph: ir.Graph, value: ir.Value, dtype: ir.DataType, *, name: str, source: ir.Value | None = None
) -> ir.Value:
    """Insert a cast right behind the value's producer, or at the start of the graph.

    The output of a cast in the graph is cast from that cast's input, so that an integer keeps its digits,
    unless `source` names another tensor to cast from.
    """
    label = f"{value.name}.{'fp32' if dtype == SINGLE else dtype.name.lower()}"
    producer = value.producer()
    made = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    attributes = [ir.AttrInt64("to", int(dtype))]
    node = ir.Node("", "Cast", [source or made], attributes=attributes, name=name)
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
    """Drop weights and casts whose readers all read the other type."""
    for node in [node for node in graph if node.op_type == "Cast"]:
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
