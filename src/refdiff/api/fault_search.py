"""Which node a graph breaks at: its inner tensors beside those of a more exact version of the same graph.

The nodes are walked in the graph's order, a bounded number of bytes at a time. A result without a counterpart
in the more exact graph is only looked at for NaN and infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.accuracy.faults import Cause, NodeResult, difference_of, first_outside
from refdiff.accuracy.gates import GraphTolerance
from refdiff.api.counterparts import Counterpart, Counterparts
from refdiff.api.extras import import_torch_room
from refdiff.contracts.session import Array

if TYPE_CHECKING:
    import onnx_ir as ir

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
    typed = import_torch_room("refdiff.engines.typed", PURPOSE)
    broken: ir.Model = typed.load_typed(failing)
    sound: ir.Model | None = None if exact is None else typed.load_typed(exact)
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
            inputs=tuple(str(given.name) for given in node.inputs if given is not None),
            counterpart=None if known is None else known.of(node, index),
            bytes=_bytes(value, largest_batch),
        )
        for node in broken.graph
        for index, value in enumerate(node.outputs)
        if value.name and value.dtype is not None and value.dtype.name in _FLOATS
    ]


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
    probe = import_torch_room("refdiff.engines.probe", PURPOSE).probe
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
