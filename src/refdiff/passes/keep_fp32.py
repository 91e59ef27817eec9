"""Which nodes of a graph stay in single precision by rule, and why.

In: an fp32 graph as the exporter wrote it, its nodes named after their modules. Out: rules of a recipe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from refdiff.contracts.recipe import Half, Rule
from refdiff.passes.half_precision import EITHER

MOVES = frozenset(
    {"Concat", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that move values and compute nothing."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_NORM_MARKS = frozenset({"InstanceNormalization", "ReduceMean"})


def default_islands(graph: ir.Graph, half: Half = "fp16") -> tuple[Rule, ...]:
    """The built-in rules that apply to a graph (docs/precision.md has the measurements)."""
    found = (
        (_norms(graph), "norms: sums of squares over a whole group overflow and cancel in half precision"),
        (
            _softmaxes(graph),
            "softmax: exponentials and their sum; TensorRT fuses the casts into the attention",
        ),
        (_angles(graph), "angles: sine and cosine of large arguments keep no digits in half precision"),
        (_taps(graph), "taps: the map that is read is a product of its own, and leaves in fp32 anyway"),
        (
            _of_kind(graph, {"Einsum"} if half == "bf16" else ()),
            "Einsum: ONNX defines none in bfloat16",
        ),
    )
    return tuple(
        Rule(nodes=tuple(_by_module(graph, nodes)), because=because, origin="rule")
        for nodes, because in found
        if nodes
    )


def default_half_weights(name: str) -> tuple[Rule, ...]:
    """The built-in rules of nodes that compute in single precision on half-precision weights."""
    if name != "sam_decoder":
        return ()
    because = (
        "what passes through the decoder decides which masks are kept: rounded, near-ties fall otherwise"
    )
    return (Rule(nodes=("*",), because=because, origin="rule"),)


def closed(graph: ir.Graph, islands: Collection[str]) -> frozenset[str]:
    """Islands without holes and without needless shores.

    A node whose neighbours on both sides are all in single precision joins them, unless it multiplies by a
    weight: its casts would cost more than it saves. So does a chain of nodes that only move values: its casts
    would cancel. On the shore such a node leaves: it needs no precision.
    """
    single = set(islands)
    nodes = [node for node in graph if node.name and _computes_floats(node)]
    while caught := _caught(nodes, single):
        single |= caught
    while idle := set(_shore(nodes, single)):
        single -= idle
    return frozenset(single)


def _caught(nodes: Collection[ir.Node], single: Collection[str]) -> set[str]:
    """Half-precision nodes between islands; of those that only move values, whole chains."""
    out = [node for node in nodes if node.name not in single]
    moves = [node for node in out if node.op_type in MOVES]
    while True:
        joined = {*single, *(_name(node) for node in moves)}
        held = [node for node in moves if _between(node, joined)]
        if len(held) == len(moves):
            break
        moves = held
    slight = (node for node in out if not weighted(node) and _between(node, single))
    return {_name(node) for node in (*moves, *slight)}


def weighted(node: ir.Node) -> bool:
    """A product or convolution whose second factor is a weight."""
    if node.op_type not in _PRODUCTS or len(node.inputs) < 2:
        return False
    data, weight = node.inputs[0], node.inputs[1]
    return data is not None and weight is not None and not data.is_initializer() and weight.is_initializer()


def _between(node: ir.Node, single: Collection[str]) -> bool:
    """Whether nothing but single precision comes in and goes out, as a graph's inputs and outputs are.

    Inputs and weights alone are no reason to compute in single precision; to move values they are.
    """
    makers, users = _makers(node), _users(node)
    if not (makers or node.op_type in MOVES) or not (users or _leaves(node)):
        return False
    return all(_name(each) in single for each in (*makers, *users))


def _shore(nodes: Iterable[ir.Node], single: Collection[str]) -> Iterator[str]:
    """Nodes of an island that only move values in from half precision, or out to it."""
    for node in nodes:
        if node.name not in single or node.op_type not in MOVES or node.name is None:
            continue
        makers, users = _makers(node), _users(node)
        enters = bool(makers) and all(maker.name not in single for maker in makers)
        leaves = bool(users) and not _leaves(node) and all(user.name not in single for user in users)
        if enters or leaves:
            yield node.name


def _norms(graph: ir.Graph) -> set[str]:
    """Every node of a module that holds a norm; LayerNormalization computes in fp32 by definition."""
    marks = [node for node in graph if node.op_type in _NORM_MARKS]
    modules = {_module(node) for node in marks} - {""}
    inside = (node for node in graph if _module(node) in modules and _computes_floats(node))
    return {_name(node) for node in (*marks, *inside)}


def _softmaxes(graph: ir.Graph) -> set[str]:
    """Softmax alone: a mask before it is -10,000 at most, which half precision holds."""
    return _of_kind(graph, {"Softmax"})


def _angles(graph: ir.Graph) -> set[str]:
    """Sine, cosine, and all arithmetic on their arguments."""
    names, front = set[str](), [node for node in graph if node.op_type in ("Sin", "Cos")]
    while front:
        node = front.pop()
        if _name(node) not in names:
            names.add(_name(node))
            front += _makers(node)
    return names


def _taps(graph: ir.Graph) -> set[str]:
    """From the output `taps` back to its products and their scales."""
    names, front = set[str](), [value for value in graph.outputs if value.name == "taps"]
    while front:
        value = front.pop()
        node = value.producer()
        if node is None or not _float(value):
            continue
        names.add(_name(node))
        if node.op_type == "MatMul":
            scale = node.inputs[0].producer() if node.inputs[0] is not None else None
            names |= {_name(scale)} if scale is not None and scale.op_type == "Mul" else set()
        elif node.op_type in MOVES:
            front += [source for source in node.inputs if source is not None]
    return names


def _of_kind(graph: ir.Graph, operators: Collection[str]) -> set[str]:
    return {_name(node) for node in graph if node.op_type in operators}


def _by_module(graph: ir.Graph, names: Collection[str]) -> Iterator[str]:
    """The same nodes, a whole module as one pattern where it has no other nodes, not even in parts of it."""
    every = [_name(node) for node in graph]
    modules = defaultdict[str, list[str]](list)
    for name in every:
        if name in names:
            modules[name.rpartition("/")[0]].append(name)
    for module, inside in modules.items():
        if module and len(inside) > 1 and all(n in names for n in every if n.startswith(f"{module}/")):
            yield f"{module}/*"
        else:
            yield from inside


def _makers(node: ir.Node) -> list[ir.Node]:
    """Nodes that computed the float inputs of this one; weights and graph inputs have none."""
    sources = [value for value in node.inputs if value is not None and _float(value)]
    return [maker for value in sources if (maker := value.producer()) is not None]


def _users(node: ir.Node) -> list[ir.Node]:
    """Nodes that read its float outputs and care for their precision."""
    uses = (use for value in node.outputs if _float(value) for use in value.uses())
    return [use.node for use in uses if use.node.op_type not in EITHER]


def _leaves(node: ir.Node) -> bool:
    return any(value.is_graph_output() for value in node.outputs)


def _computes_floats(node: ir.Node) -> bool:
    return any(_float(value) for value in node.outputs)


def _float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _module(node: ir.Node) -> str:
    return _name(node).rpartition("/")[0]


def _name(node: ir.Node) -> str:
    return node.name or ""
