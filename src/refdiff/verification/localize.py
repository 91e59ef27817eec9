"""Find the node at which a graph diverges, by comparing its inner tensors with a more exact version's.

Nodes are compared in the graph's order, a bounded number of bytes at a time. A converted graph keeps the
names of its nodes, so a result is matched by name. The result of an inserted node (cast, Q/DQ) is matched as
the tensor it was given, and what SmoothQuant divided is multiplied again. A result without a match is only
checked for NaN and infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refdiff.accuracy.tolerances import GraphTolerance
from refdiff.contracts.optional import require_export
from refdiff.contracts.session import Array, Float
from refdiff.verification.divergence import Cause, NodeResult, difference_of, first_outside_tolerance

if TYPE_CHECKING:
    import onnx_ir as ir

PURPOSE = "the search for the node that breaks"

MOST_BYTES = 1 << 28
"""Size of one graph's tensors held at once."""

_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"})

Read = Callable[[Sequence[str]], dict[str, Array]]
"""Names of tensors -> their values."""

Reader = Callable[["ir.Model", Path, Mapping[str, Array]], Read]
"""As `read_tensors`."""

_TRANSPARENT = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
"""Inserted operators, whose result is matched as the tensor they were given."""

_NEAR = 0.01
"""Tolerance of an exponent: a scale rounded to half precision is no exact power of two times the original."""


@dataclass(frozen=True, kw_only=True)
class _Output:
    """A float output of a node of the failing graph, and its match."""

    node: str
    operator: str
    tensor: str
    type: str
    inputs: tuple[str, ...]
    match: MatchedTensor | None
    size_bytes: int


def read_tensors(model: ir.Model, folder: Path, feeds: Mapping[str, Array]) -> Read:
    """Return what reads tensors of a graph by their names, in one run on these feeds for each call."""
    with require_export(PURPOSE):
        from refdiff.engines.intermediate_tensors import probe
    return lambda names: {name: values for _, name, values in probe(model, [feeds], names, folder=folder)}


def find_first_divergence(
    failing: Path,
    exact: Path | None,
    feeds: Mapping[str, Array],
    tolerance: GraphTolerance,
    *,
    most_bytes: int = MOST_BYTES,
    reader: Reader = read_tensors,
) -> tuple[Cause, NodeResult] | None:
    """Find the first node of a graph whose result is outside the graph's tolerance.

    Args:
        failing: the graph's file.
        exact: the file of the same graph in a more exact bundle; with None only NaN and Inf are found.
        feeds: those the graph failed on.
        tolerance: the graph's; a node may be as far off.
        most_bytes: size of one graph's tensors held at once.
        reader: as `read_tensors`.

    Returns:
        The cause and the node's result; None where no node differs on this machine.

    Raises:
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
        EngineError: ONNX Runtime cannot load or run a graph.
    """
    with require_export(PURPOSE):
        from refdiff.passes.graph_files import load_typed
    largest_batch = max((len(array) for array in feeds.values() if array.ndim), default=1)
    model, matcher, read_exact = load_typed(failing), None, None
    if exact is not None:
        exact_model = load_typed(exact)
        matcher = TensorMatcher(exact_model.graph)
        read_exact = reader(exact_model, exact.parent, feeds)
    outputs = _float_outputs(model, matcher, largest_batch)
    results = _results(
        _groups(outputs, most_bytes), reader(model, failing.parent, feeds), read_exact, tolerance
    )
    return first_outside_tolerance(results, tolerance)


def _float_outputs(model: ir.Model, matcher: TensorMatcher | None, largest_batch: int) -> list[_Output]:
    """Return every float output, in the graph's order."""
    return [
        _Output(
            node=node.name or value.name,
            operator=node.op_type,
            tensor=value.name,
            type=value.dtype.name,
            inputs=tuple(_source_name(given) for given in node.inputs if given is not None),
            match=None if matcher is None else matcher.match(node, index),
            size_bytes=_size_bytes(value, largest_batch),
        )
        for node in model.graph
        for index, value in enumerate(node.outputs)
        if value.name and value.dtype is not None and value.dtype.name in _FLOATS
    ]


def _source_name(given: ir.Value) -> str:
    """Return the name of the float tensor that is read; of quantized values, the one they were made of."""
    producer = given.producer()
    if producer is not None and producer.op_type == "QuantizeLinear" and producer.inputs[0] is not None:
        return str(producer.inputs[0].name)
    return str(given.name)


def _results(
    groups: Iterable[Sequence[_Output]], read: Read, read_exact: Read | None, tolerance: GraphTolerance
) -> Iterator[NodeResult]:
    errors: dict[str, float] = {}
    for group in groups:
        names = [each.match.tensor for each in group if each.match is not None]
        exact = {} if read_exact is None else read_exact(names)
        got = read([each.tensor for each in group])
        for each in group:
            values, expected = got.pop(each.tensor), None
            if each.match is not None:
                values, expected = each.match.unsmooth(values), exact[each.match.tensor]
            difference = difference_of(values, expected, tolerance)
            before = max((errors.get(name, 0.0) for name in each.inputs), default=0.0)
            # A result that cannot be compared is as wrong as what it was made of.
            errors[each.tensor] = max(difference.error, before) if expected is None else difference.error
            yield NodeResult(
                node=each.node,
                operator=each.operator,
                tensor=each.tensor,
                type=each.type,
                difference=difference,
                input_error=before,
            )


def _groups(outputs: Sequence[_Output], most_bytes: int) -> Iterator[list[_Output]]:
    """Yield the outputs in groups of at most so many bytes."""
    group, held = list[_Output](), 0
    for each in outputs:
        if group and held + each.size_bytes > most_bytes:
            yield group
            group, held = [], 0
        group.append(each)
        held += each.size_bytes
    if group:
        yield group


def _size_bytes(value: ir.Value, batch: int) -> int:
    """Estimate the size of a tensor in one run; a dimension without a number counts as the batch."""
    sizes = [] if value.shape is None else [size if isinstance(size, int) else batch for size in value.shape]
    return 4 * math.prod(sizes)


@dataclass(frozen=True, kw_only=True)
class MatchedTensor:
    """The tensor of the more exact graph that a result should equal."""

    tensor: str
    factors: Float | None = None
    """SmoothQuant's divisors per channel, the last axis; None where there are none."""

    def unsmooth(self, got: Array) -> Array:
        """Return the result multiplied by what SmoothQuant divided it by."""
        return got if self.factors is None else got * self.factors


class TensorMatcher:
    """Matches results of a failing graph with tensors of a more exact version of it.

    Args:
        exact: the more exact version.
    """

    def __init__(self, exact: ir.Graph) -> None:
        self._nodes: Mapping[str, ir.Node] = {node.name: node for node in exact if node.name}
        self._inputs = frozenset(str(value.name) for value in exact.inputs)

    def match(self, node: ir.Node, index: int) -> MatchedTensor | None:
        """Return the match of one output of a node; None where the more exact graph has no such tensor."""
        while (original := self._original(node)) is None:
            source = node.inputs[0] if node.op_type in _TRANSPARENT else None
            if source is None:
                return None
            producer = source.producer()
            if producer is None:
                return self._match_source(source, node)
            node, index = producer, source.index() or 0
        name = original.outputs[index].name if index < len(original.outputs) else None
        return MatchedTensor(tensor=name, factors=_smoothing(node, original)) if name else None

    def _original(self, node: ir.Node) -> ir.Node | None:
        found = self._nodes.get(node.name or "")
        return found if found is not None and found.op_type == node.op_type else None

    def _match_source(self, source: ir.Value, first: ir.Node) -> MatchedTensor | None:
        """Return the match of an input or weight of the graph; `first` is the cast or DQ that reads it."""
        if source.name in self._inputs:
            return MatchedTensor(tensor=str(source.name))
        for use in first.outputs[0].uses():
            original = self._original(use.node)
            known = original is not None and use.idx < len(original.inputs)
            weight = original.inputs[use.idx] if original is not None and known else None
            if weight is None or weight.const_value is None or (use.idx and self._smoothed(use.node)):
                continue
            return MatchedTensor(tensor=str(weight.name))
        return None

    def _smoothed(self, node: ir.Node) -> bool:
        """Return whether SmoothQuant divided the node's data, its first input, and multiplied its weight."""
        data = node.inputs[0]
        producer = None if data is None else data.producer()
        known = None if producer is None or data is None else self.match(producer, data.index() or 0)
        return known is not None and known.factors is not None


def _smoothing(node: ir.Node, original: ir.Node) -> Float | None:
    """Return what a norm's scale was divided by, powers of two per channel; None if that is 1 throughout."""
    if node.op_type != "LayerNormalization":
        return None
    ours, theirs = (_constant(each, 1) for each in (node, original))
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
