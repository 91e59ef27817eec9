"""From headroom to islands: which nodes half precision cannot hold, and which are broken already in fp32.

A tensor out of reach concerns the node that makes it and the nodes that read it: a cast between them would
lose the same values. Three things put one out of reach:

    overflow   its largest magnitude, times a margin, is beyond the end of the type
    product    the largest factors of a product or convolution, multiplied, are: some engines add in half
    underflow  rounding small values takes more from it than `LOSS` times what rounding takes from any value,
               and somebody multiplies or transforms it; who only adds it is judged by the sum

Softmax shows why the last asks for the loss of the whole: two thirds of its results are often too small to
keep their digits, and together they are a millionth of the tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from refdiff.calibration.dynamic_range import INPUT, REACHES, WEIGHT, Headroom, is_single
from refdiff.calibration.simulation import Deviation
from refdiff.contracts.recipe import Half, Origin, Rule
from refdiff.passes.half_precision import EITHER
from refdiff.passes.keep_fp32 import MOVES, _by_module

MARGIN = 4.0
"""Between the largest magnitude on the feeds and the end of the type: other pictures reach further."""

LOSS = 8.0
"""Times the type's rounding error that the small values of a tensor may lose."""

Kind = Literal["overflow", "product", "underflow", "trial"]

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})

_SUMS = frozenset({"Add", "Sub", "Sum"})

_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators that only add their third input."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One tensor out of reach."""

    kind: Kind
    tensor: str
    node: str
    """Who makes it; of an input or a weight, the first who reads it."""
    value: float
    """What the kind is about: a magnitude, or the share that is lost."""
    nodes: tuple[str, ...]
    """Who makes and reads it: they belong into single precision."""
    covered: bool
    """They are there by rule."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "kind": self.kind,
            "tensor": self.tensor,
            "node": self.node,
            "value": self.value,
            "nodes": list(self.nodes),
            "covered": self.covered,
        }


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A node that makes NaN or infinity in fp32, from inputs that hold none; no precision mends that."""

    node: str
    """Of a weight or an input, the first node that reads it."""
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
        """A JSON-ready dictionary."""
        return {
            "node": self.node,
            "operator": self.operator,
            "tensor": self.tensor,
            "nan": self.nan,
            "inf": self.inf,
            "size": self.size,
        }


def broken(graph: ir.Graph, measured: Iterable[Headroom]) -> tuple[Broken, ...]:
    """Where non-numbers begin: weights that hold some, nodes that make some; in the graph's order.

    Args:
        graph: in fp32.
        measured: its tensors.
    """
    bad = {each.tensor: each for each in measured if not each.is_finite}
    found = dict[str, Broken]()
    for node in graph if bad else ():
        sources = [str(value.name) for value in node.inputs if value is not None and value.name in bad]
        guilty = [name for name in sources if bad[name].operator in (INPUT, WEIGHT)]
        made = [str(value.name) for value in node.outputs if value.name in bad]
        for name in (*guilty, *(() if sources else made)):
            each = bad[name]
            found.setdefault(
                name,
                Broken(
                    node=node.name or "",
                    operator=each.operator,
                    tensor=name,
                    nan=each.nan,
                    inf=each.inf,
                    size=each.size,
                ),
            )
    return tuple(found.values())


def findings(
    graph: ir.Graph,
    measured: Iterable[Headroom],
    half: Half,
    *,
    islands: Collection[str],
    half_weights: Collection[str] = (),
    margin: float = MARGIN,
) -> tuple[Finding, ...]:
    """Everything out of reach, in the graph's order.

    Args:
        graph: in fp32.
        measured: all its tensors, finite.
        half: the type it will have.
        islands: nodes that stay in single precision anyway.
        half_weights: those of them whose weights do not.
        margin: from a magnitude to the end of the type.
    """
    values = {str(value.name): value for value in _values(graph)}
    tensors = {each.tensor: each for each in measured}
    found = (
        *(_of_tensor(values[name], each, half, margin) for name, each in tensors.items()),
        *(_of_product(node, tensors, half, margin) for node in graph if node.op_type in _PRODUCTS),
    )
    order = {node.name or "": number for number, node in enumerate(graph)}
    stored = frozenset(islands).difference(half_weights)
    weights = {name for name, each in tensors.items() if each.operator == WEIGHT}
    return tuple(
        sorted(
            (
                Finding(
                    kind=kind,
                    tensor=tensor,
                    node=nodes[0],
                    value=value,
                    nodes=nodes,
                    covered=all(node in (stored if tensor in weights else islands) for node in nodes),
                )
                for kind, tensor, value, nodes in filter(None, found)
                if nodes
            ),
            key=lambda finding: order[finding.node],
        )
    )


def lost_in_trial(
    graph: ir.Graph, tensors: Iterable[Deviation], *, islands: Collection[str]
) -> tuple[Finding, ...]:
    """Tensors that were finite in fp32 and were not in a trial, where that begins; in the graph's order.

    Args:
        graph: in fp32.
        tensors: the trial's; see `simulation.simulated`.
        islands: nodes that were in single precision.
    """
    values = {str(value.name): value for value in _values(graph)}
    return tuple(
        Finding(
            kind="trial",
            tensor=each.tensor,
            node=each.node,
            value=float(each.lost),
            nodes=nodes,
            covered=all(node in islands for node in nodes),
        )
        for each in tensors
        if each.begins and (nodes := _around(values[each.tensor]))
    )


def proposed(
    graph: ir.Graph, found: Sequence[Finding], half: Half, *, origin: Origin = "audit"
) -> tuple[Rule, ...]:
    """Rules for what no island covers, one per kind, with what was measured."""
    rules = []
    for kind, because in _BECAUSE.items():
        some = [finding for finding in found if finding.kind == kind and not finding.covered]
        if some:
            worst = max(some, key=lambda finding: finding.value)
            more = f"; {len(some) - 1} more" if len(some) > 1 else ""
            text = because.format(
                tensor=worst.tensor, value=worst.value, half=half, largest=REACHES[half].largest
            )
            names = {name for finding in some for name in finding.nodes}
            rules.append(
                Rule(nodes=tuple(_by_module(graph, names)), because=f"{kind}: {text}{more}", origin=origin)
            )
    return tuple(rules)


_BECAUSE: Mapping[Kind, str] = {
    "overflow": "{tensor} reaches {value:.4g}, {half} ends at {largest:.4g}",
    "product": "factors of {tensor} reach {value:.4g} multiplied, {half} ends at {largest:.4g}",
    "underflow": "{tensor} loses {value:.1%} to {half}'s smallest values",
    "trial": "{tensor} made {value:.0f} NaN or Inf in a trial in {half}",
}

_FIXED = frozenset({WEIGHT, "Constant"})

_Found = tuple[Kind, str, float, tuple[str, ...]]


def _of_tensor(value: ir.Value, measured: Headroom, half: Half, margin: float) -> _Found | None:
    reach = REACHES[half]
    # A weight is the same on all pictures: it needs no margin.
    factor = 1.0 if measured.operator in _FIXED else margin
    if measured.largest * factor > reach.largest:
        return "overflow", measured.tensor, measured.largest, _around(value)
    if measured.lost > LOSS * reach.rounding and not _only_added(value):
        return "underflow", measured.tensor, measured.lost, _around(value)
    return None


def _of_product(node: ir.Node, tensors: Mapping[str, Headroom], half: Half, margin: float) -> _Found | None:
    factors = [tensors[str(value.name)].largest for value in node.inputs[:2] if is_single(value) and value]
    if len(factors) < 2 or factors[0] * factors[1] * margin <= REACHES[half].largest:
        return None
    return "product", str(node.outputs[0].name), factors[0] * factors[1], (node.name or "",)


def _around(value: ir.Value) -> tuple[str, ...]:
    """Who makes a tensor, then who reads it and cares for its precision.

    Of a weight also who reads what is moved from it, however small a part: all of it is stored in one type.
    """
    maker = value.producer()
    nodes = [] if maker is None or maker.op_type == "Constant" else [maker]
    read = _moved(value) if value.is_initializer() else (value,)
    nodes += [use.node for each in read for use in each.uses() if use.node.op_type not in EITHER]
    return tuple(dict.fromkeys(node.name or "" for node in nodes))


def _only_added(value: ir.Value) -> bool:
    """Whether all who read a tensor add it to something; whoever reads an output may do anything with it."""
    read = list(_moved(value))
    uses = (use for each in read for use in each.uses() if use.node.op_type not in {*MOVES, *EITHER})
    return not any(each.is_graph_output() for each in read) and all(_adds(use.node, use.idx) for use in uses)


def _moved(value: ir.Value) -> Iterator[ir.Value]:
    """A tensor, and all that nodes that only move values make of it."""
    yield value
    for use in value.uses():
        if use.node.op_type in MOVES:
            for moved in use.node.outputs:
                yield from _moved(moved)


def _adds(node: ir.Node, index: int) -> bool:
    return node.op_type in _SUMS or (node.op_type in _WITH_BIAS and index == 2)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
