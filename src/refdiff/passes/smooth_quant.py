"""SmoothQuant for linear layers behind a LayerNormalization (Xiao et al., arXiv 2211.10438).

Channels of an activation that reach far are divided by s, the rows of the weights that read them multiplied:

    s_j = max|X_j|^a / max|W_j|^(1-a)

The division goes into the norm's scale and bias, so it costs no node. Every s is rounded to a power of two:
then neither division nor product changes a digit of what is computed in floating point.

Axes: j = input channels of a linear layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from refdiff.contracts.session import Float
from refdiff.errors import InputError
from refdiff.passes.half_precision import converted

LONGEST = 24
"""Powers of two beyond which float32 itself would lose a weight's digits."""


def smoothable(graph: ir.Graph, nodes: Collection[str]) -> dict[str, tuple[ir.Node, ...]]:
    """Output of a norm -> the linear layers among `nodes` that read it, where nobody else does."""
    found = {}
    for norm in graph:
        if norm.op_type != "LayerNormalization":
            continue
        value = norm.outputs[0]
        readers = tuple(dict.fromkeys(use.node for use in value.uses()))
        linear = all(each.name in nodes and each.op_type in ("MatMul", "Gemm") for each in readers)
        if readers and linear and not value.is_graph_output() and value.name:
            found[value.name] = readers
    return found


class Smooth:
    """Applies exponents to one graph.

    Args:
        smoothing: tensor -> exponents per channel.
        nodes: names of the nodes that will be quantised.
    """

    def __init__(self, smoothing: Mapping[str, Sequence[int]], nodes: Collection[str]) -> None:
        self._smoothing = smoothing
        self._nodes = frozenset(nodes)

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place, and return it.

        A tensor of which no reader is quantised is left as it is.

        Raises:
            InputError: a smoothed tensor is no norm's output, has another number of channels, or some of its
                readers are quantised and some are not.
        """
        graph = model.graph
        self._check_names(graph)
        groups = smoothable(graph, self._nodes)
        for norm in list(graph):
            name = norm.outputs[0].name or ""
            if name not in self._smoothing:
                continue
            if name in groups:
                _fold(graph, norm, groups[name], self._factors(norm))
            elif any(use.node.name in self._nodes for use in norm.outputs[0].uses()):
                raise InputError(
                    f"the recipe smooths {name}, but not all that reads it is quantised; "
                    "quantise all of it or none, or leave out the smoothing"
                )
        return model

    def _check_names(self, graph: ir.Graph) -> None:
        norms = {node.outputs[0].name for node in graph if node.op_type == "LayerNormalization"}
        for name in self._smoothing:
            if name not in norms:
                raise InputError(
                    f"the recipe smooths {name!r}, but no LayerNormalization makes it; correct the recipe"
                )

    def _factors(self, norm: ir.Node) -> Float:
        name = norm.outputs[0].name or ""
        powers, scale = self._smoothing[name], _tensor(norm, 1)
        channels = scale.shape.numpy()[-1]
        if len(powers) != channels or max(map(abs, powers), default=0) > LONGEST:
            raise InputError(
                f"the recipe smooths {name} with {len(powers)} powers of two, expected {channels} of "
                f"-{LONGEST} to {LONGEST}; correct the recipe, or calibrate again"
            )
        factors: Float = np.exp2(np.asarray(powers, np.float32))
        return factors


def _fold(graph: ir.Graph, norm: ir.Node, readers: Sequence[ir.Node], factors: Float) -> None:
    """Divide what the norm puts out, multiply what reads it."""
    for index in range(1, len(norm.inputs)):
        _replace(graph, norm, index, (1 / factors).astype(np.float32))
    for node in readers:
        _replace(graph, node, 1, _along_rows(node, factors))


def row_reach(node: ir.Node) -> Float:
    """Largest magnitude of the weights that read each input channel."""
    weight = _tensor(node, 1).numpy()
    reach: Float = np.abs(weight).max(axis=0 if _transposed(node) else 1)
    return reach


def _along_rows(node: ir.Node, factors: Float) -> Float:
    return factors[None, :] if _transposed(node) else factors[:, None]


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1


def _replace(graph: ir.Graph, node: ir.Node, index: int, factors: Float) -> None:
    """Give a node its own copy of a constant, multiplied when it is read."""
    value = node.inputs[index]
    if value is None:
        return
    name = f"{node.name}/smoothed:{index}"
    tensor = converted(_tensor(node, index), ir.DataType.FLOAT, lambda weight: weight * factors, name=name)
    copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    graph.register_initializer(copy)
    node.replace_input_with(index, copy)


def _tensor(node: ir.Node, index: int) -> ir.TensorProtocol:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise InputError(f"{node.name}: input {index} is no constant; correct the recipe")
    return value.const_value
