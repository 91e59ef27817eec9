"""What is made of a tensor inside the running graph, so that little leaves it and one run serves all tensors.

A reduction takes a tensor (float32) and gives the nodes to put behind it; the last one's result is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from refdiff.calibration.probing import Reduction
from refdiff.contracts.session import Array
from refdiff.errors import InputError


def check_finite(graph: Path, name: str, index: int, *, finite: bool) -> None:
    """Refuse a tensor that no range serves.

    Raises:
        InputError: it is not finite.
    """
    if not finite:
        raise InputError(
            f"{graph.stem}: {name} holds NaN or infinity in fp32, on record {index}; "
            "mend the model first (refdiff audit)"
        )


@dataclass(frozen=True)
class Tail:
    """The largest magnitudes of one tensor in one run."""

    size: int
    """How many values the tensor has."""
    finite: bool
    """No NaN, no infinity."""
    largest: Array
    """[k] float64, largest first."""

    @classmethod
    def read(cls, values: Array) -> Tail:
        """From what the reduction of `tails` put out."""
        return cls(size=int(values[0]), finite=bool(np.isfinite(values[1])), largest=values[2:])


def tails(share: float, smoothing: Mapping[str, Sequence[int]]) -> Reduction:
    """A reduction to [2 + k] float64: the size, a sum that is NaN or infinite if a value is, the k largest.

    Args:
        share: k is this share of the values, rounded up, and one more; never more than there are.
        smoothing: tensor -> powers of two that its channels are divided by first.
    """

    def reduction(value: ir.Value) -> Sequence[ir.Node]:
        made = _Nodes()
        divided, powers = value, smoothing.get(str(value.name))
        if powers is not None:
            divided = made.node("Div", value, made.constant(np.exp2(np.array(powers, np.float32))))
        flat = made.node("Reshape", made.node("Abs", divided), made.constant([-1]))
        size = made.node("Shape", flat)  # [1]
        real = made.node("Cast", size, to=ir.DataType.DOUBLE)
        part = made.node("Ceil", made.node("Mul", real, made.constant(np.array([share], np.float64))))
        most = made.node("Add", made.node("Cast", part, to=ir.DataType.INT64), made.constant([1]))
        largest = made.node("TopK", flat, made.node("Min", most, size), outputs=2)
        total = made.node("ReduceSum", flat, made.constant([0]))  # [1]
        facts = made.node("Concat", total, largest, axis=0)
        made.node("Concat", real, made.node("Cast", facts, to=ir.DataType.DOUBLE), axis=0)
        return made.nodes

    return reduction


def channel_maxima(value: ir.Value) -> Sequence[ir.Node]:
    """The reduction to [channels], the last axis: the largest magnitude in each; NaN where a value is NaN."""
    made = _Nodes()
    flat = made.node("Flatten", made.node("Abs", value), axis=-1)  # [values, channels]
    largest = made.node("ReduceMax", flat, made.constant([0]), keepdims=0)
    # A maximum may pass over NaN; a sum does not.
    total = made.node("ReduceSum", flat, made.constant([0]), keepdims=0)
    made.node("Where", made.node("IsNaN", total), total, largest)
    return made.nodes


class _Nodes:
    """A chain of nodes in the making."""

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
