"""Reduce tensors inside the running graph, so that one run serves all tensors and little data leaves it.

A reduction maps a tensor (float32) to the nodes that are inserted behind it; the last one's result is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from refdiff.contracts.session import Array
from refdiff.errors import InputError

Reduction = Callable[[ir.Value], Sequence[ir.Node]]


def check_finite(graph: Path, name: str, index: int, *, finite: bool) -> None:
    """Refuse a tensor that is not finite: it has no range.

    Raises:
        InputError: it is not finite.
    """
    if not finite:
        raise InputError(
            f"{graph.stem}: {name} holds NaN or infinity in fp32, on record {index}; "
            "fix the model first (refdiff audit)"
        )


@dataclass(frozen=True)
class Tail:
    """The largest magnitudes of one tensor in one run."""

    size: int
    """Number of values in the tensor."""
    finite: bool
    """Whether all of them are finite."""
    largest: Array
    """[k] float64, largest first."""

    @classmethod
    def read(cls, values: Array) -> Tail:
        """Read the result of a `tail_reduction`."""
        return cls(size=int(values[0]), finite=bool(np.isfinite(values[1])), largest=values[2:])


def tail_reduction(share: float, smoothing: Mapping[str, Sequence[int]]) -> Reduction:
    """Return a reduction to [2 + k] float64: size, a sum that is not finite if a value is not, k largest.

    Args:
        share: k is this share of the values, rounded up, plus one, and at most their number.
        smoothing: tensor -> exponents of two that its channels are divided by first.
    """

    def reduction(value: ir.Value) -> Sequence[ir.Node]:
        chain = _NodeChain()
        divided, powers = value, smoothing.get(str(value.name))
        if powers is not None:
            divided = chain.node("Div", value, chain.constant(np.exp2(np.array(powers, np.float32))))
        flat = chain.node("Reshape", chain.node("Abs", divided), chain.constant([-1]))
        size = chain.node("Shape", flat)  # [1]
        real = chain.node("Cast", size, to=ir.DataType.DOUBLE)
        part = chain.node("Ceil", chain.node("Mul", real, chain.constant(np.array([share], np.float64))))
        most = chain.node("Add", chain.node("Cast", part, to=ir.DataType.INT64), chain.constant([1]))
        largest = chain.node("TopK", flat, chain.node("Min", most, size), outputs=2)
        total = chain.node("ReduceSum", flat, chain.constant([0]))  # [1]
        facts = chain.node("Concat", total, largest, axis=0)
        chain.node("Concat", real, chain.node("Cast", facts, to=ir.DataType.DOUBLE), axis=0)
        return chain.nodes

    return reduction


def channel_maxima(value: ir.Value) -> Sequence[ir.Node]:
    """Reduce to [channels], the last axis: the largest magnitude of each channel, NaN if it holds NaN."""
    chain = _NodeChain()
    flat = chain.node("Flatten", chain.node("Abs", value), axis=-1)  # [values, channels]
    largest = chain.node("ReduceMax", flat, chain.constant([0]), keepdims=0)
    # A maximum may pass over NaN; a sum does not.
    total = chain.node("ReduceSum", flat, chain.constant([0]), keepdims=0)
    chain.node("Where", chain.node("IsNaN", total), total, largest)
    return chain.nodes


class _NodeChain:
    """Collects nodes as they are made."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def node(self, operator: str, *inputs: ir.Value, outputs: int = 1, **attributes: int) -> ir.Value:
        node = ir.Node(
            "",
            operator,
            inputs,
            attributes=[ir.AttrInt64(name, int(value)) for name, value in attributes.items()],
            num_outputs=outputs,
        )
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, values: Sequence[int] | Array) -> ir.Value:
        array = np.asarray(values, np.int64) if isinstance(values, list) else np.asarray(values)
        node = ir.Node("", "Constant", [], attributes=[ir.AttrTensor("value", ir.tensor(array))])
        self.nodes.append(node)
        return node.outputs[0]
