"""SmoothQuant for linear layers behind a LayerNormalization (Xiao et al., arXiv 2211.10438).

Channels of an activation that reach far are divided by s, the rows of the weights that read them multiplied:

    s_j = max|X_j|^a / max|W_j|^(1-a)

The division goes into the norm's scale and bias, so it costs no node. Every s is rounded to a power of two:
then neither division nor product changes a digit of what is computed in floating point.

Axes: j = input channels of a linear layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from refdiff.calibration.lazy_weights import converted
from refdiff.calibration.probing import Probe
from refdiff.contracts.session import Array, Float
from refdiff.errors import InputError

_TINY = 1e-8


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


def exponents(
    probe: Probe,
    path: Path,
    feeds: Sequence[Mapping[str, Array]],
    nodes: Collection[str],
    *,
    strength: float = 0.5,
) -> dict[str, tuple[int, ...]]:
    """The powers of two to divide by, per channel of each smoothable tensor.

    Args:
        probe: runs the graph.
        path: an fp32 graph.
        feeds: one mapping for each run.
        nodes: names of the nodes that will be quantised.
        strength: a, 0..1: how much of the difficulty moves from activations to weights.

    Raises:
        InputError: a strength outside 0..1.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"got smoothing strength {strength}, expected 0 to 1")
    groups = smoothable(ir.load(path).graph, nodes)
    reach: dict[str, Float] = {}
    for _, name, values in probe(path, feeds, tuple(groups)):
        channels = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
        reach[name] = np.maximum(reach[name], channels) if name in reach else channels
    result = {}
    for name, readers in groups.items():
        weights = np.max([_row_reach(node) for node in readers], axis=0)
        steps = strength * np.log2(np.maximum(reach[name], _TINY))
        steps -= (1 - strength) * np.log2(np.maximum(weights, _TINY))
        steps -= steps.mean()  # one factor for all channels would change nothing
        result[name] = tuple(int(step) for step in np.rint(steps))
    return result


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
            InputError: some readers of a smoothed tensor are quantised and some are not.
        """
        graph = model.graph
        groups = smoothable(graph, self._nodes)
        for norm in list(graph):
            name = norm.outputs[0].name or ""
            if name not in self._smoothing:
                continue
            if name in groups:
                factors: Float = np.exp2(np.asarray(self._smoothing[name], np.float32))
                _fold(graph, norm, groups[name], factors)
            elif any(use.node.name in self._nodes for use in norm.outputs[0].uses()):
                raise InputError(
                    f"the recipe smooths {name}, but not all that reads it is quantised; "
                    "quantise all of it or none, or leave out the smoothing"
                )
        return model


def _fold(graph: ir.Graph, norm: ir.Node, readers: Sequence[ir.Node], factors: Float) -> None:
    """Divide what the norm puts out, multiply what reads it."""
    for index in range(1, len(norm.inputs)):
        _replace(graph, norm, index, (1 / factors).astype(np.float32))
    for node in readers:
        _replace(graph, node, 1, _along_rows(node, factors))


def _row_reach(node: ir.Node) -> Float:
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
