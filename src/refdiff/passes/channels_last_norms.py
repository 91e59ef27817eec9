"""Write norms over channels as the operators for which ONNX Runtime's CUDA provider has a kernel.

The export writes a group norm as an instance norm over groups or, for large groups, as means of means in rows
(`export/onnx_export.py`); SAM's norm over channels is written as means. On a GPU each of their nodes reads
and writes the whole tensor. This pass replaces each norm by one node on channels-last tensors, between two
transpositions, which ONNX Runtime merges with those around its channels-last convolutions:

    group norm, with a SiLU that follows    com.microsoft.GroupNorm, computed in single precision
    norm over channels (LayerNorm2d)        LayerNormalization over the last axis

The limits of the CUDA kernel of GroupNorm are checked here: float32 or float16, at most 32 groups, and an
even number of channels in each. What does not fit stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from refdiff.contracts.session import Array
from refdiff.passes.rewriting import Row, constant, maker, only_reader, origin

DOMAIN = "com.microsoft"

MOST_GROUPS = 32
"""Most groups that the CUDA kernel takes."""

KERNEL_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""Types that the CUDA kernels of these operators take."""

_ROWS, _CHANNELS = [[3], [2]], [[1]]
"""Axes of the means of a group norm in rows, the first first, and of a norm over channels."""


@dataclass(frozen=True, kw_only=True)
class _Norm:
    """A norm: what it reads, the value that is its result, and its constants."""

    source: ir.Value
    result: ir.Value
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    epsilon: float
    groups: int | None
    """None: over the channels of each place."""
    silu: bool = False
    """The result is x * sigmoid(x) of the norm."""


class ChannelsLastNorms:
    """Replace the norms of a graph; `group_norms` and `channel_norms` count those of the last call."""

    def __init__(self) -> None:
        self.group_norms = self.channel_norms = 0

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place and return it; its tensors must have types and shapes."""
        found = [norm for node in list(model.graph) if (norm := _find(node)) is not None]
        for norm in found:
            _replace(model.graph, norm)
        self.group_norms = sum(norm.groups is not None for norm in found)
        self.channel_norms = len(found) - self.group_norms
        if self.group_norms:
            model.opset_imports[DOMAIN] = 1
        return model


def _find(node: ir.Node) -> _Norm | None:
    """Return the norm whose values are divided by their deviation in this node."""
    if node.op_type == "InstanceNormalization":
        return _group_norm(node, _instance_norm(node))
    if node.op_type != "Div":
        return None
    axes, read = _written_as_means(node)
    if axes == _ROWS:
        return _group_norm(node, read)
    return _channel_norm(node, read) if axes == _CHANNELS else None


def _instance_norm(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return what an instance norm without own scale and shift reads, and its epsilon."""
    scale, shift = (constant(value) for value in node.inputs[1:3])
    source = node.inputs[0]
    if scale is None or shift is None or source is None or (scale != 1).any() or (shift != 0).any():
        return None
    return source, node.attributes.get_float("epsilon", 1e-5)


def _written_as_means(node: ir.Node) -> tuple[list[list[int]], tuple[ir.Value, float] | None]:
    """Return axes, x and epsilon of (x - mean x) / sqrt(mean (x - mean x)^2 + epsilon)."""
    centred, root = maker(node.inputs[0]), maker(node.inputs[1])
    if centred is None or root is None or (centred.op_type, root.op_type) != ("Sub", "Sqrt"):
        return [], None
    variance, epsilon = _split(maker(root.inputs[0]), "Add")
    source, mean_axes = _averaged(centred.inputs[1])
    squares, variance_axes = _averaged(variance)
    before = origin(centred.inputs[0])
    if epsilon is None or epsilon.size != 1 or before is None or origin(source) is not before:
        return [], None
    if mean_axes != variance_axes or not _squares(maker(squares), centred):
        return [], None
    return mean_axes, (before, float(epsilon.item()))


def _squares(node: ir.Node | None, centred: ir.Node) -> bool:
    """Return whether a node squares what another one makes: x * x, or x to the power of 2."""
    if node is None or maker(node.inputs[0]) is not centred:
        return False
    if node.op_type == "Mul":
        return maker(node.inputs[1]) is centred
    power = constant(node.inputs[1]) if node.op_type == "Pow" else None
    return power is not None and power.size == 1 and float(power.item()) == 2


def _averaged(value: ir.Value | None) -> tuple[ir.Value | None, list[list[int]]]:
    """Return what one or more means that keep their axes read, and the axes, the first mean's first."""
    axes: list[list[int]] = []
    while (node := maker(value)) is not None and node.op_type == "ReduceMean":
        listed = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if listed is None or node.attributes.get_int("keepdims", 1) != 1:
            return None, []
        axes.insert(0, [int(axis) for axis in listed.reshape(-1)])
        value = node.inputs[0]
    return value, axes


def _split(node: ir.Node | None, operator: str) -> tuple[ir.Value | None, Array | None]:
    """Return the computed and the constant operand of a sum or product; None for what it does not have."""
    if node is None or node.op_type != operator:
        return None, None
    for index in (0, 1):
        values = constant(node.inputs[1 - index])
        if values is not None:
            return node.inputs[index], values
    return None, None


def _group_norm(node: ir.Node, read: tuple[ir.Value, float] | None) -> _Norm | None:
    """Complete a group norm: the reshapes around it, scale and shift of each channel, and a SiLU."""
    into, out_of = (None, None) if read is None else (maker(read[0]), only_reader(node))
    if read is None or into is None or out_of is None or {into.op_type, out_of.op_type} != {"Reshape"}:
        return None
    source, grouped = origin(into.inputs[0]), into.outputs[0].shape
    if source is None or grouped is None or not _same_places(source, out_of.outputs[0]):
        return None
    channels, groups = source.shape[1] if source.shape is not None else None, grouped[1]
    if not isinstance(channels, int) or not isinstance(groups, int):
        return None
    if groups > MOST_GROUPS or channels % (2 * groups):
        return None
    norm = _scaled(out_of, channels, source, read[1])
    return None if norm is None else _with_silu(replace(norm, groups=groups))


def _same_places(source: ir.Value, result: ir.Value) -> bool:
    """Return whether two tensors of an image have the same static shape, but for the batch."""
    if source.shape is None or result.shape is None or len(source.shape) not in (3, 4):
        return False
    sizes = list(source.shape)[1:]
    return sizes == list(result.shape)[1:] and all(isinstance(size, int) for size in sizes)


def _channel_norm(node: ir.Node, read: tuple[ir.Value, float] | None) -> _Norm | None:
    """Complete a norm over the channels of each place: scale and shift of each channel."""
    if read is None or read[0].shape is None or len(read[0].shape) != 4:
        return None
    channels = read[0].shape[1]
    return _scaled(node, channels, *read) if isinstance(channels, int) else None


def _scaled(node: ir.Node, channels: int, source: ir.Value, epsilon: float) -> _Norm | None:
    """Return the norm of a node whose result is only read to be scaled and shifted per channel."""
    scale = only_reader(node)
    shift = None if scale is None else only_reader(scale)
    (_, gamma), (_, beta) = _split(scale, "Mul"), _split(shift, "Add")
    if shift is None or gamma is None or beta is None:
        return None
    if not (_per_channel(gamma, channels) and _per_channel(beta, channels)):
        return None
    result = _after_cast(shift.outputs[0])
    if source.dtype not in KERNEL_TYPES or result.dtype not in KERNEL_TYPES:
        return None
    flat = (np.asarray(values, np.float32).reshape(-1) for values in (gamma, beta))
    return _Norm(
        source=source, result=result, gamma=next(flat), beta=next(flat), epsilon=epsilon, groups=None
    )


def _per_channel(values: Array, channels: int) -> bool:
    """Return whether constants have one value for each channel of [b, channels, ...]."""
    spread = values.shape[values.shape.index(channels) + 1 :] if channels in values.shape else ()
    return values.size == channels and len(spread) in (1, 2) and set(spread) == {1}


def _after_cast(value: ir.Value) -> ir.Value:
    """Return what a single cast makes of a value, or the value itself."""
    uses = list(value.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Cast" or value.is_graph_output():
        return value
    return uses[0].node.outputs[0]


def _with_silu(norm: _Norm) -> _Norm:
    """Add x * sigmoid(x) to the norm, if these two nodes are all that read its result."""
    readers = {id(use.node): use.node for use in norm.result.uses()}
    kinds = {node.op_type: node for node in readers.values()}
    if norm.result.is_graph_output() or len(readers) != 2 or set(kinds) != {"Sigmoid", "Mul"}:
        return norm
    gate, product = kinds["Sigmoid"], kinds["Mul"]
    read = {id(value) for value in product.inputs}
    if only_reader(gate) is not product or read != {id(norm.result), id(gate.outputs[0])}:
        return norm
    return replace(norm, result=_after_cast(product.outputs[0]), silu=True)


def _replace(graph: ir.Graph, norm: _Norm) -> None:
    """Put the operator in the place of the norm's nodes, which lose their readers."""
    last, shape = norm.result.producer(), norm.source.shape
    name, flat = str(last.name if last is not None else ""), shape is not None and len(shape) == 3
    half = norm.source.dtype == norm.result.dtype == ir.DataType.FLOAT16
    row = Row(graph, norm.source, name)
    row.cast(ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
    row.add("Transpose", perm=[0, 2, 1] if flat else [0, 2, 3, 1])
    if norm.groups is None:
        dtype = np.float16 if half else np.float32  # the operator has one type; its sums are in float32
        scale, shift = (row.weight(f"{name}/{n}", v.astype(dtype)) for n, v in _weights(norm))
        row.add("LayerNormalization", scale, shift, axis=-1, epsilon=norm.epsilon)
    else:
        scale, shift = (row.weight(f"{name}/{n}", v) for n, v in _weights(norm))
        settings = {"groups": norm.groups, "activation": int(norm.silu), "channels_last": 1}
        if flat:
            row.add("Unsqueeze", row.ints(1))
        row.add("GroupNorm", scale, shift, domain=DOMAIN, epsilon=norm.epsilon, **settings)
        if flat:
            row.add("Squeeze", row.ints(1))
    row.add("Transpose", perm=[0, 2, 1] if flat else [0, 3, 1, 2])
    row.cast(norm.result.dtype or ir.DataType.FLOAT)
    row.replace(norm.result)


def _weights(norm: _Norm) -> tuple[tuple[str, NDArray[np.float32]], ...]:
    return ("gamma", norm.gamma), ("beta", norm.beta)
