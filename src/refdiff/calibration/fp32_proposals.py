"""Propose nodes for fp32: tensors that half precision cannot hold, and nodes that fail in fp32 already.

A tensor out of range concerns the node that makes it and the nodes that read it: a cast between them would
lose the same values. Three things put a tensor out of range:

    overflow   its largest magnitude, times a margin, is beyond the largest value of the type
    product    the largest factors of a product or convolution, multiplied, are: some engines add in half
    underflow  rounding its small values takes more from it than `LOSS` times the rounding error of any value,
               and a node multiplies or transforms it; where it is only added, the sum is judged instead

Underflow is judged by the loss over the whole tensor because of softmax: two thirds of its results are often
too small to keep their digits, and together they are a millionth of the tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from refdiff.calibration.dynamic_range import INPUT, TYPE_RANGES, WEIGHT, DynamicRange, is_single
from refdiff.calibration.simulation import Deviation
from refdiff.contracts.recipe import Half, Origin, Rule
from refdiff.passes.half_precision import ANY_TYPE
from refdiff.passes.keep_fp32 import MOVES, patterns_by_module

MARGIN = 4.0
"""Between the largest magnitude on the feeds and the type's largest value: other images may go further."""

LOSS = 8.0
"""Multiple of the type's rounding error that the small values of a tensor may lose."""

Kind = Literal["overflow", "product", "underflow", "trial"]

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})

_SUMS = frozenset({"Add", "Sub", "Sum"})

_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators that only add their third input."""


@dataclass(frozen=True, kw_only=True)
class OutOfRange:
    """One tensor that half precision cannot hold."""

    kind: Kind
    tensor: str
    node: str
    """The node that makes it; for an input or a weight, the first node that reads it."""
    value: float
    """A magnitude, the share that is lost, or a number of values, depending on the kind."""
    nodes: tuple[str, ...]
    """The nodes that make and read it: they belong in fp32."""
    covered: bool
    """True if rules keep all of them in fp32 already."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class NonFinite:
    """A node that makes NaN or infinity in fp32 from finite inputs; no precision can fix that."""

    node: str
    """For a weight or an input, the first node that reads it."""
    operator: str
    tensor: str
    nan: int
    inf: int
    size: int

    def __str__(self) -> str:
        held = self.operator in (INPUT, WEIGHT)
        what = f": its {self.operator} {self.tensor} holds" if held else f" ({self.operator}) makes"
        return f"{self.node}{what} {self.nan} NaN and {self.inf} Inf of {self.size} values in fp32"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return dataclasses.asdict(self)


def find_non_finite(graph: ir.Graph, measured: Iterable[DynamicRange]) -> tuple[NonFinite, ...]:
    """Find where NaN and infinities begin: weights that hold some, nodes that make some.

    Args:
        graph: in fp32.
        measured: its tensors.

    Returns:
        In the graph's order.
    """
    bad = {each.tensor: each for each in measured if not each.is_finite}
    found = dict[str, NonFinite]()
    for node in graph if bad else ():
        sources = [str(value.name) for value in node.inputs if value is not None and value.name in bad]
        held = [name for name in sources if bad[name].operator in (INPUT, WEIGHT)]
        made = [str(value.name) for value in node.outputs if value.name in bad]
        for name in (*held, *(() if sources else made)):
            each = bad[name]
            found.setdefault(
                name,
                NonFinite(
                    node=node.name or "",
                    operator=each.operator,
                    tensor=name,
                    nan=each.nan,
                    inf=each.inf,
                    size=each.size,
                ),
            )
    return tuple(found.values())


def find_out_of_range(
    graph: ir.Graph,
    measured: Iterable[DynamicRange],
    half: Half,
    *,
    fp32: Collection[str],
    half_weights: Collection[str] = (),
    margin: float = MARGIN,
) -> tuple[OutOfRange, ...]:
    """Find all tensors out of range, in the graph's order.

    Args:
        graph: in fp32.
        measured: all its tensors, finite.
        half: the type it will have.
        fp32: nodes that rules keep in fp32.
        half_weights: nodes among them whose weights are stored in half precision.
        margin: from a magnitude to the type's largest value.
    """
    values = {str(value.name): value for value in _values(graph)}
    tensors = {each.tensor: each for each in measured}
    found = (
        *(_check_tensor(values[name], each, half, margin) for name, each in tensors.items()),
        *(_check_product(node, tensors, half, margin) for node in graph if node.op_type in _PRODUCTS),
    )
    order = {node.name or "": number for number, node in enumerate(graph)}
    stored = frozenset(fp32).difference(half_weights)
    weights = {name for name, each in tensors.items() if each.operator == WEIGHT}
    return tuple(
        sorted(
            (
                OutOfRange(
                    kind=kind,
                    tensor=tensor,
                    node=nodes[0],
                    value=value,
                    nodes=nodes,
                    covered=all(node in (stored if tensor in weights else fp32) for node in nodes),
                )
                for kind, tensor, value, nodes in filter(None, found)
                if nodes
            ),
            key=lambda each: order[each.node],
        )
    )


def find_lost_values(
    graph: ir.Graph, tensors: Iterable[Deviation], *, fp32: Collection[str]
) -> tuple[OutOfRange, ...]:
    """Find where a run in half precision began to lose values that are finite in fp32, in the graph's order.

    Args:
        graph: in fp32.
        tensors: result of `simulation.simulate`.
        fp32: nodes that were in fp32 in that run.
    """
    values = {str(value.name): value for value in _values(graph)}
    return tuple(
        OutOfRange(
            kind="trial",
            tensor=each.tensor,
            node=each.node,
            value=float(each.lost),
            nodes=nodes,
            covered=all(node in fp32 for node in nodes),
        )
        for each in tensors
        if each.begins and (nodes := _makers_and_readers(values[each.tensor]))
    )


def propose_rules(
    graph: ir.Graph, found: Sequence[OutOfRange], half: Half, *, origin: Origin = "audit"
) -> tuple[Rule, ...]:
    """Return rules for the nodes that no rule covers, one rule per kind, with what was measured."""
    rules = []
    for kind, because in _BECAUSE.items():
        uncovered = [each for each in found if each.kind == kind and not each.covered]
        if uncovered:
            worst = max(uncovered, key=lambda each: each.value)
            more = f"; {len(uncovered) - 1} more" if len(uncovered) > 1 else ""
            text = because.format(
                tensor=worst.tensor, value=worst.value, half=half, largest=TYPE_RANGES[half].largest
            )
            names = {name for each in uncovered for name in each.nodes}
            nodes = tuple(patterns_by_module(graph, names))
            rules.append(Rule(nodes=nodes, because=f"{kind}: {text}{more}", origin=origin))
    return tuple(rules)


_BECAUSE: Mapping[Kind, str] = {
    "overflow": "{tensor} reaches {value:.4g}, {half} ends at {largest:.4g}",
    "product": "factors of {tensor} reach {value:.4g} multiplied, {half} ends at {largest:.4g}",
    "underflow": "{tensor} loses {value:.1%} to {half}'s smallest values",
    "trial": "{tensor} made {value:.0f} NaN or Inf in a trial in {half}",
}

_FIXED = frozenset({WEIGHT, "Constant"})

_Found = tuple[Kind, str, float, tuple[str, ...]]


def _check_tensor(value: ir.Value, measured: DynamicRange, half: Half, margin: float) -> _Found | None:
    limits = TYPE_RANGES[half]
    # A weight is the same for all images: it needs no margin.
    factor = 1.0 if measured.operator in _FIXED else margin
    if measured.largest * factor > limits.largest:
        return "overflow", measured.tensor, measured.largest, _makers_and_readers(value)
    if measured.lost > LOSS * limits.rounding and not _is_only_added(value):
        return "underflow", measured.tensor, measured.lost, _makers_and_readers(value)
    return None


def _check_product(
    node: ir.Node, tensors: Mapping[str, DynamicRange], half: Half, margin: float
) -> _Found | None:
    factors = [tensors[str(value.name)].largest for value in node.inputs[:2] if is_single(value) and value]
    if len(factors) < 2 or factors[0] * factors[1] * margin <= TYPE_RANGES[half].largest:
        return None
    return "product", str(node.outputs[0].name), factors[0] * factors[1], (node.name or "",)


def _makers_and_readers(value: ir.Value) -> tuple[str, ...]:
    """Return the node that makes a tensor, then the nodes that read it and depend on its precision.

    For a weight, readers of every part moved out of it count too: the whole weight is stored in one type.
    """
    maker = value.producer()
    nodes = [] if maker is None or maker.op_type == "Constant" else [maker]
    read = _moved_values(value) if value.is_initializer() else (value,)
    nodes += [use.node for each in read for use in each.uses() if use.node.op_type not in ANY_TYPE]
    return tuple(dict.fromkeys(node.name or "" for node in nodes))


def _is_only_added(value: ir.Value) -> bool:
    """Return whether all readers add a tensor to something; a graph output may be read in any way."""
    read = list(_moved_values(value))
    uses = (use for each in read for use in each.uses() if use.node.op_type not in {*MOVES, *ANY_TYPE})
    return not any(each.is_graph_output() for each in read) and all(_adds(use.node, use.idx) for use in uses)


def _moved_values(value: ir.Value) -> Iterator[ir.Value]:
    """Yield a tensor, and all tensors that nodes make of it by only moving values."""
    yield value
    for use in value.uses():
        if use.node.op_type in MOVES:
            for moved in use.node.outputs:
                yield from _moved_values(moved)


def _adds(node: ir.Node, index: int) -> bool:
    return node.op_type in _SUMS or (node.op_type in _WITH_BIAS and index == 2)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
