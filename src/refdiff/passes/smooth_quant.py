"""SmoothQuant for linear layers behind a LayerNormalization (Xiao et al., arXiv 2211.10438).

Activation channels with large values are divided by s, and the weight rows that read them multiplied by it:

    s_j = max|X_j|^a / max|W_j|^(1-a)

The division goes into the norm's scale and bias, so it costs no node. Every s is rounded to a power of two:
then neither division nor product changes a digit of a floating-point result.

Axes: j = input channels of a linear layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from refdiff.contracts.session import Float
from refdiff.errors import InputError
from refdiff.passes.half_precision import convert_lazily

MAX_EXPONENT = 24
"""Powers of two beyond this would lose digits of a weight even in float32."""


def smoothable_tensors(graph: ir.Graph, nodes: Collection[str]) -> dict[str, tuple[ir.Node, ...]]:
    """Return the norm outputs that only linear layers among `nodes` read, each with those layers."""
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


class SmoothQuant:
    """Scale the smoothed tensors of one graph down, and the weights that read them up.

    Args:
        smoothing: tensor -> exponents of two, one per channel.
        nodes: names of the nodes that will be quantized.
    """

    def __init__(self, smoothing: Mapping[str, Sequence[int]], nodes: Collection[str]) -> None:
        self._smoothing = smoothing
        self._nodes = frozenset(nodes)

    def __call__(self, model: ir.Model) -> ir.Model:
        """Change the model in place and return it.

        A tensor with no quantized reader is not modified.

        Raises:
            InputError: a smoothed tensor is not a norm's output, has another number of channels, or only
                some of its readers are quantized.
        """
        graph = model.graph
        self._check_names(graph)
        groups = smoothable_tensors(graph, self._nodes)
        for norm in list(graph):
            name = norm.outputs[0].name or ""
            if name not in self._smoothing:
                continue
            if name in groups:
                _fold(graph, norm, groups[name], self._factors(norm))
            elif any(use.node.name in self._nodes for use in norm.outputs[0].uses()):
                raise InputError(
                    f"the recipe smooths {name}, but not all that reads it is quantized; "
                    "quantize all of it or none, or leave out the smoothing"
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
        exponents, scale = self._smoothing[name], _constant_input(norm, 1)
        channels = scale.shape.numpy()[-1]
        if len(exponents) != channels or max(map(abs, exponents), default=0) > MAX_EXPONENT:
            raise InputError(
                f"the recipe smooths {name} with {len(exponents)} powers of two, expected {channels} of "
                f"-{MAX_EXPONENT} to {MAX_EXPONENT}; correct the recipe, or calibrate again"
            )
        factors: Float = np.exp2(np.asarray(exponents, np.float32))
        return factors


def _fold(graph: ir.Graph, norm: ir.Node, readers: Sequence[ir.Node], factors: Float) -> None:
    """Divide the norm's scale and bias, and multiply the weights that read its output."""
    for index in range(1, len(norm.inputs)):
        _scale_input(graph, norm, index, (1 / factors).astype(np.float32))
    for node in readers:
        _scale_input(graph, node, 1, factors[None, :] if _is_transposed(node) else factors[:, None])


def largest_by_row(node: ir.Node) -> Float:
    """Return [j]: the largest magnitude among the weights that read each input channel."""
    weight = _constant_input(node, 1).numpy()
    largest: Float = np.abs(weight).max(axis=0 if _is_transposed(node) else 1)
    return largest


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1


def _scale_input(graph: ir.Graph, node: ir.Node, index: int, factors: Float) -> None:
    """Give a node its own copy of a constant input, multiplied when it is read."""
    value = node.inputs[index]
    if value is None:
        return
    name = f"{node.name}/smoothed:{index}"
    constant = _constant_input(node, index)
    tensor = convert_lazily(constant, ir.DataType.FLOAT, lambda weight: weight * factors, name=name)
    copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    graph.register_initializer(copy)
    node.replace_input_with(index, copy)


def _constant_input(node: ir.Node, index: int) -> ir.TensorProtocol:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise InputError(f"{node.name}: input {index} is no constant; correct the recipe")
    return value.const_value
