"""Which tensor of a more exact graph a node's result should equal.

A converted graph keeps the names of its nodes, so that a result has its counterpart by name. What a pass put
in between (casts, Q/DQ) stands for the tensor it was given; what SmoothQuant divided is multiplied again.

Which node a graph breaks at: its inner tensors beside those of a more exact version of the same graph.

The nodes are walked in the graph's order, a bounded number of bytes at a time. A result without a counterpart
in the more exact graph is only looked at for NaN and infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refdiff.accuracy.tolerances import GraphTolerance
from refdiff.contracts.optional import require_export
from refdiff.contracts.session import Array, Float
from refdiff.verification.divergence import Cause, NodeResult, difference_of, first_outside

if TYPE_CHECKING:
    import onnx_ir as ir

_PASSED_ON = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
"""Operators whose result stands for what they were given."""

_NEAR = 0.01
"""Of an exponent: a scale that was rounded to half precision is no exact power of two from its twin."""


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
            if weight is None or weight.const_value is None or (use.idx and self._smoothed(use.node)):
                continue
            return Counterpart(tensor=str(weight.name))
        return None

    def _smoothed(self, node: ir.Node) -> bool:
        """SmoothQuant divided the node's data, its first input, and so multiplied its weight."""
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


PURPOSE = "the search for the node that breaks"

MOST_BYTES = 1 << 28
"""Of one graph's tensors held at once."""

_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"})

Read = Callable[[Sequence[str]], dict[str, Array]]
"""Names of tensors -> their values."""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A result of the failing graph, and its counterpart."""

    node: str
    operator: str
    tensor: str
    type: str
    inputs: tuple[str, ...]
    counterpart: Counterpart | None
    bytes: int


def find_fault(
    failing: Path, exact: Path | None, feeds: Mapping[str, Array], tolerance: GraphTolerance
) -> tuple[Cause, NodeResult] | None:
    """The first node of a graph that leaves its tolerance.

    Args:
        failing: the graph's file.
        exact: the same graph's in a more exact bundle; None finds the first non-number alone.
        feeds: those it failed on.
        tolerance: the graph's; a node may be as far off.

    Returns:
        Why it is to blame, and what it made; None where no node differs on this machine.

    Raises:
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
        EngineError: ONNX Runtime cannot load or run a graph.
    """
    with require_export(PURPOSE):
        from refdiff.passes.graph_files import load_typed
    broken = load_typed(failing)
    sound = None if exact is None else load_typed(exact)
    known = None if sound is None else Counterparts(sound.graph)
    made = _made(broken, known, largest_batch=max((len(a) for a in feeds.values() if a.ndim), default=1))
    read_broken = _reader(broken, failing.parent, feeds)
    read_sound = None if sound is None or exact is None else _reader(sound, exact.parent, feeds)
    return first_outside(_results(made, read_broken, read_sound, tolerance), tolerance)


def _made(broken: ir.Model, known: Counterparts | None, *, largest_batch: int) -> list[_Made]:
    """Every float result, in the graph's order."""
    return [
        _Made(
            node=node.name or value.name,
            operator=node.op_type,
            tensor=value.name,
            type=value.dtype.name,
            inputs=tuple(_read_by(given) for given in node.inputs if given is not None),
            counterpart=None if known is None else known.of(node, index),
            bytes=_bytes(value, largest_batch),
        )
        for node in broken.graph
        for index, value in enumerate(node.outputs)
        if value.name and value.dtype is not None and value.dtype.name in _FLOATS
    ]


def _read_by(given: ir.Value) -> str:
    """Name of the float tensor that is read: of eight-bit values, the one they were made of."""
    producer = given.producer()
    if producer is not None and producer.op_type == "QuantizeLinear" and producer.inputs[0] is not None:
        return str(producer.inputs[0].name)
    return str(given.name)


def _results(
    made: Sequence[_Made], read: Read, read_exact: Read | None, tolerance: GraphTolerance
) -> Iterator[NodeResult]:
    errors: dict[str, float] = {}
    for some in _groups(made):
        names = [each.counterpart.tensor for each in some if each.counterpart is not None]
        exact = {} if read_exact is None else read_exact(names)
        got = read([each.tensor for each in some])
        for each in some:
            values, expected = got.pop(each.tensor), None
            if each.counterpart is not None:
                values, expected = each.counterpart.undone(values), exact[each.counterpart.tensor]
            difference = difference_of(values, expected, tolerance)
            before = max((errors.get(name, 0.0) for name in each.inputs), default=0.0)
            # A result that has nothing to be compared with is as wrong as what it was made of.
            errors[each.tensor] = max(difference.error, before) if expected is None else difference.error
            yield NodeResult(
                node=each.node,
                operator=each.operator,
                tensor=each.tensor,
                type=each.type,
                difference=difference,
                input_error=before,
            )


def _reader(model: ir.Model, folder: Path, feeds: Mapping[str, Array]) -> Read:
    with require_export(PURPOSE):
        from refdiff.engines.intermediate_tensors import probe
    return lambda names: {name: values for _, name, values in probe(model, [feeds], names, folder=folder)}


def _groups(made: Sequence[_Made]) -> Iterator[list[_Made]]:
    group, held = list[_Made](), 0
    for each in made:
        if group and held + each.bytes > MOST_BYTES:
            yield group
            group, held = [], 0
        group.append(each)
        held += each.bytes
    if group:
        yield group


def _bytes(value: ir.Value, batch: int) -> int:
    """About how much one run makes of it; a dimension without a size counts as the batch."""
    sizes = [] if value.shape is None else [size if isinstance(size, int) else batch for size in value.shape]
    return 4 * math.prod(sizes)
