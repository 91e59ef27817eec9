"""Which tensor of a more exact graph a node's result should equal.

A converted graph keeps the names of its nodes, so that a result has its counterpart by name. What a pass put in
between (casts, Q/DQ) stands for the tensor it was given; what SmoothQuant divided is multiplied again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refdiff.contracts.session import Array, Float

if TYPE_CHECKING:
    import onnx_ir as ir

_PASSED_ON = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
"""Operators whose result stands for what they were given."""

_NEAR = 0.01
"""Of an exponent: a scale that was rounded to half precision is still a power of two apart from the exact one."""


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """A tensor of the more exact graph."""

    tensor: str
    factors: Float | None = None
    """[channel, the last axis]: what the result is multiplied by before it is compared; None: by nothing."""

    def undone(self, got: Array) -> Array:
        """The result as it was before SmoothQuant."""
        return got if self.factors is None else got * self.factors


class Counterparts:
    """Of a failing graph's results, in a more exact version of it."""

    def __init__(self, sound: ir.Graph) -> None:
        self._nodes: Mapping[str, ir.Node] = {node.name: node for node in sound if node.name}
        self._inputs = frozenset(str(value.name) for value in sound.inputs)

    def of(self, node: ir.Node, index: int) -> Counterpart | None:
        """Of one output of a node; None where the more exact graph has no such tensor."""
        while (twin := self._twin(node)) is None:
            source = node.inputs[0] if node.op_type in _PASSED_ON else None
            if source is None:
                return None
            producer = source.producer()
            if producer is None:
                return self._of_source(source, node)
            node, index = producer, source.index() or 0
        name = twin.outputs[index].name if index < len(twin.outputs) else None
        return Counterpart(tensor=name, factors=_smoothing(node, twin)) if name else None

    def _twin(self, node: ir.Node) -> ir.Node | None:
        twin = self._nodes.get(node.name or "")
        return twin if twin is not None and twin.op_type == node.op_type else None

    def _of_source(self, source: ir.Value, first: ir.Node) -> Counterpart | None:
        """Of what a graph's input or weight became: `first` is the cast or DQ that reads it."""
        if source.name in self._inputs:
            return Counterpart(tensor=str(source.name))
        for use in first.outputs[0].uses():
            twin = self._twin(use.node)
            weight = None if twin is None or use.idx >= len(twin.inputs) else twin.inputs[use.idx]
            if weight is not None and weight.const_value is not None and not self._smoothed(use.node):
                return Counterpart(tensor=str(weight.name))
        return None

    def _smoothed(self, node: ir.Node) -> bool:
        """SmoothQuant multiplied the node's weight."""
        data = node.inputs[0]
        producer = None if data is None else data.producer()
        known = None if producer is None or data is None else self.of(producer, data.index() or 0)
        return known is not None and known.factors is not None


def _smoothing(node: ir.Node, twin: ir.Node) -> Float | None:
    """What a norm's scale was divided by, powers of two per channel; None where that is one throughout."""
    if node.op_type != "LayerNormalization":
        return None
    ours, theirs = (_constant(each, 1) for each in (node, twin))
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return None
    alive = (ours != 0) & (theirs != 0)
    factors = np.ones(ours.shape, np.float32)
    with np.errstate(invalid="ignore"):
        exponents = np.log2(theirs[alive] / ours[alive])
    powers = np.rint(exponents)
    if not (np.abs(exponents - powers) < _NEAR).all() or not powers.any():  # nor is a NaN near anything
        return None
    factors[alive] = np.exp2(powers)
    return factors


def _constant(node: ir.Node, index: int) -> Float | None:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        return None
    array: Float = np.asarray(value.const_value.numpy(), np.float32)
    return array
