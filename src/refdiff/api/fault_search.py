"""Which node a graph breaks at: its inner tensors beside those of a more exact version of the same graph.

A converted graph keeps the names of its nodes, so that a node's results have their counterparts by name; what
a pass put in between (casts, Q/DQ) stands for the tensor it was given. The nodes are walked in the graph's
order, a bounded number of bytes at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.accuracy.faults import Cause, NodeResult, difference_of, first_outside
from refdiff.accuracy.gates import GraphTolerance
from refdiff.api.extras import import_torch_room
from refdiff.contracts.session import Array

if TYPE_CHECKING:
    import onnx_ir as ir

PURPOSE = "the search for the node that breaks"

MOST_BYTES = 1 << 28
"""Of one graph's tensors held at once."""

_PASSED_ON = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
"""Operators whose result stands for what they were given."""

_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"})

Read = Callable[[Sequence[str]], dict[str, Array]]
"""Names of tensors -> their values."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A result of the failing graph, and its counterpart."""

    node: str
    operator: str
    tensor: str
    counterpart: str
    """Name of the tensor in the more exact graph; "" where there is none to compare with."""
    inputs: tuple[str, ...]
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
    typed = import_torch_room("refdiff.engines.typed", PURPOSE)
    broken: ir.Model = typed.load_typed(failing)
    sound: ir.Model | None = None if exact is None else typed.load_typed(exact)
    pairs = _pairs(broken, sound, largest_batch=max((len(a) for a in feeds.values() if a.ndim), default=1))
    read_broken = _reader(broken, failing.parent, feeds)
    read_sound = None if sound is None or exact is None else _reader(sound, exact.parent, feeds)
    return first_outside(_results(pairs, read_broken, read_sound, tolerance), tolerance)


def _results(
    pairs: Sequence[_Pair], read: Read, read_exact: Read | None, tolerance: GraphTolerance
) -> Iterator[NodeResult]:
    errors: dict[str, float] = {}
    for some in _groups(pairs):
        exact = {} if read_exact is None else read_exact([pair.counterpart for pair in some])
        got = read([pair.tensor for pair in some])
        for pair in some:
            difference = difference_of(got.pop(pair.tensor), exact.get(pair.counterpart), tolerance)
            errors[pair.tensor] = difference.error
            yield NodeResult(
                node=pair.node,
                operator=pair.operator,
                tensor=pair.tensor,
                difference=difference,
                input_error=max((errors.get(name, 0.0) for name in pair.inputs), default=0.0),
            )


def _reader(model: ir.Model, folder: Path, feeds: Mapping[str, Array]) -> Read:
    probe = import_torch_room("refdiff.engines.probe", PURPOSE).probe
    return lambda names: {name: values for _, name, values in probe(model, [feeds], names, folder=folder)}


def _pairs(broken: ir.Model, sound: ir.Model | None, *, largest_batch: int) -> list[_Pair]:
    """Every float result that has a counterpart, in the graph's order."""
    known = None if sound is None else _Counterparts(sound)
    pairs = []
    for node in broken.graph:
        for index, value in enumerate(node.outputs):
            if not value.name or value.dtype is None or value.dtype.name not in _FLOATS:
                continue
            counterpart = "" if known is None else known.of(node, index)
            if counterpart is not None:
                pairs.append(
                    _Pair(
                        node=node.name or value.name,
                        operator=node.op_type,
                        tensor=value.name,
                        counterpart=counterpart,
                        inputs=tuple(str(given.name) for given in node.inputs if given is not None),
                        bytes=_bytes(value, largest_batch),
                    )
                )
    return pairs


class _Counterparts:
    """Which tensor of the more exact graph a result should equal."""

    def __init__(self, sound: ir.Model) -> None:
        self._nodes = {node.name: node for node in sound.graph if node.name}
        made = (value for node in sound.graph for value in node.outputs)
        self._values = {str(value.name) for value in (*sound.graph.inputs, *made)}

    def of(self, node: ir.Node, index: int) -> str | None:
        """The tensor's name; None where the graph has no such tensor."""
        twin = self._nodes.get(str(node.name))
        if twin is not None and twin.op_type == node.op_type and index < len(twin.outputs):
            return twin.outputs[index].name or None
        return self._behind(node)

    def _behind(self, node: ir.Node | None) -> str | None:
        """What a cast or a pair of Q/DQ was given."""
        while node is not None and node.op_type in _PASSED_ON:
            source = node.inputs[0]
            if source is None:
                return None
            producer = source.producer()
            twin = None if producer is None else self._nodes.get(str(producer.name))
            if producer is not None and twin is not None and twin.op_type == producer.op_type:
                return twin.outputs[source.index() or 0].name or None
            if producer is None and source.name in self._values:
                return source.name
            node = producer
        return None


def _groups(pairs: Sequence[_Pair]) -> Iterator[list[_Pair]]:
    group, held = list[_Pair](), 0
    for pair in pairs:
        if group and held + pair.bytes > MOST_BYTES:
            yield group
            group, held = [], 0
        group.append(pair)
        held += pair.bytes
    if group:
        yield group


def _bytes(value: ir.Value, batch: int) -> int:
    """About how much one run makes of it; a dimension without a size counts as the batch."""
    sizes = [] if value.shape is None else [size if isinstance(size, int) else batch for size in value.shape]
    return 4 * math.prod(sizes)
