"""Choose the nodes that stay in fp32: the built-in rules, and the regions that they form.

In: an fp32 graph as the exporter wrote it, its nodes named after their modules. Out: rules of a recipe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from refdiff.contracts.graphs import TAP_OUTPUTS
from refdiff.contracts.recipe import Half, Rule
from refdiff.passes.half_precision import ANY_TYPE

MOVES = frozenset(
    {"Concat", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that move values and compute nothing."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_LINEAR = frozenset({"Add", "MatMul", "ReduceSum", "Transpose"})
"""Operators of a linear attention between its weights, which are ReLUs, and its quotient."""

_NORM_MARKS = frozenset({"InstanceNormalization", "ReduceMean"})


def default_fp32_nodes(graph: ir.Graph, half: Half = "fp16") -> tuple[Rule, ...]:
    """Return the built-in rules that apply to a graph (docs/precision.md has the measurements)."""
    found = (
        (_norms(graph), "norms: sums of squares over a whole group overflow and cancel in half precision"),
        (
            _softmaxes(graph),
            "softmax: exponentials and their sum; TensorRT fuses the casts into the attention",
        ),
        (
            _linear_attentions(graph),
            "linear attention: sums over all cells overflow in half precision, and so does their quotient",
        ),
        (_angles(graph), "angles: sine and cosine of large arguments keep no digits in half precision"),
        (_taps(graph), "taps: the map that is read is a product of its own, and leaves in fp32 anyway"),
        (
            _nodes_of_kind(graph, {"Einsum"} if half == "bf16" else ()),
            "Einsum: ONNX defines none in bfloat16",
        ),
    )
    return tuple(
        Rule(nodes=tuple(patterns_by_module(graph, nodes)), because=because, origin="rule")
        for nodes, because in found
        if nodes
    )


_DRAWING = {
    "sam_decoder": (
        "what passes through the decoder decides which masks are kept: rounded, near-ties fall otherwise"
    ),
    "sam_masks": "it draws every pixel: one at an edge moves the box of a mask, and with it CLIP's crop",
}
"""Graph that computes in fp32 on half-precision weights -> the reason."""


def default_half_weights(name: str, graph: ir.Graph) -> tuple[Rule, ...]:
    """Return the built-in rules for nodes of `name` that compute in fp32 on half-precision weights."""
    if name in _DRAWING:
        return (Rule(nodes=("*",), because=_DRAWING[name], origin="rule"),)
    nodes = tuple(last_products(graph)) if name == "sam_encoder" else ()
    because = "last convolution: between two norms in fp32, it alone makes most of the embedding's error"
    return (Rule(nodes=nodes, because=because, origin="rule"),) if nodes else ()


def last_products(graph: ir.Graph) -> Iterator[str]:
    """Yield the name of the last product or convolution with a weight before each output."""
    for value in graph.outputs:
        node = value.producer()
        while node is not None and not is_weighted(node):
            makers = (source.producer() for source in node.inputs if source is not None)
            node = next((maker for maker in makers if maker is not None), None)
        if node is not None and node.name:
            yield node.name


def close_regions(graph: ir.Graph, names: Collection[str]) -> frozenset[str]:
    """Close gaps between fp32 regions and trim data-movement nodes at their boundaries.

    A node with only fp32 neighbours on both sides joins them unless it multiplies by a weight: its casts
    would cost more than half precision saves. A chain of nodes that only move values joins too, since its
    casts would cancel. At the boundary of a region such a node leaves it: moving values needs no precision.

    Args:
        graph: in fp32.
        names: nodes that rules keep in fp32.

    Returns:
        Names of all nodes in fp32 regions.
    """
    single = set(names)
    nodes = [node for node in graph if node.name and _computes_floats(node)]
    while caught := _find_caught(nodes, single):
        single |= caught
    while moves := set(_boundary(nodes, single)):
        single -= moves
    return frozenset(single)


def _find_caught(nodes: Collection[ir.Node], single: Collection[str]) -> set[str]:
    """Return the half-precision nodes between fp32 nodes; nodes that only move values as whole chains."""
    half = [node for node in nodes if node.name not in single]
    moves = [node for node in half if node.op_type in MOVES]
    while True:
        joined = {*single, *(_name(node) for node in moves)}
        held = [node for node in moves if _is_between(node, joined)]
        if len(held) == len(moves):
            break
        moves = held
    unweighted = (node for node in half if not is_weighted(node) and _is_between(node, single))
    return {_name(node) for node in (*moves, *unweighted)}


def is_weighted(node: ir.Node) -> bool:
    """Return whether a node is a product or convolution whose second factor is a weight."""
    if node.op_type not in _PRODUCTS or len(node.inputs) < 2:
        return False
    data, weight = node.inputs[0], node.inputs[1]
    return data is not None and weight is not None and not data.is_initializer() and weight.is_initializer()


def _is_between(node: ir.Node, single: Collection[str]) -> bool:
    """Return whether all neighbours of a node are in fp32; the graph's inputs and outputs count as such.

    A node that reads only inputs and weights has no reason to compute in fp32, unless it only moves values.
    """
    makers, users = _makers(node), _users(node)
    if not (makers or node.op_type in MOVES) or not (users or _is_output(node)):
        return False
    return all(_name(each) in single for each in (*makers, *users))


def _boundary(nodes: Iterable[ir.Node], single: Collection[str]) -> Iterator[str]:
    """Yield the fp32 nodes that only move values in from half precision, or out to it."""
    for node in nodes:
        if node.name not in single or node.op_type not in MOVES or node.name is None:
            continue
        makers, users = _makers(node), _users(node)
        enters = bool(makers) and all(maker.name not in single for maker in makers)
        leaves = bool(users) and not _is_output(node) and all(user.name not in single for user in users)
        if enters or leaves:
            yield node.name


def _norms(graph: ir.Graph) -> set[str]:
    """Return every node of a module with a norm; LayerNormalization computes in fp32 by definition."""
    marks = [node for node in graph if node.op_type in _NORM_MARKS]
    modules = {_module(node) for node in marks} - {""}
    inside = (node for node in graph if _module(node) in modules and _computes_floats(node))
    return {_name(node) for node in (*marks, *inside)}


def _softmaxes(graph: ir.Graph) -> set[str]:
    """Return the softmaxes alone: a mask before one is -10,000 at most, which half precision holds."""
    return _nodes_of_kind(graph, {"Softmax"})


def _linear_attentions(graph: ir.Graph) -> set[str]:
    """Return the products, the sum of weights and the quotient of each attention without a softmax."""
    names = set[str]()
    for quotient in (node for node in graph if node.op_type == "Div"):
        found, front = {_name(quotient): quotient}, _makers(quotient)
        while front:
            node = front.pop()
            if node.op_type in _LINEAR and _name(node) not in found:
                found[_name(node)] = node
                front += _makers(node)
        if {"MatMul", "ReduceSum"} <= {node.op_type for node in found.values()}:
            names |= set(found)
    return names


def _angles(graph: ir.Graph) -> set[str]:
    """Return sines, cosines and all arithmetic on their arguments."""
    names, front = set[str](), [node for node in graph if node.op_type in ("Sin", "Cos")]
    while front:
        node = front.pop()
        if _name(node) not in names:
            names.add(_name(node))
            front += _makers(node)
    return names


def _taps(graph: ir.Graph) -> set[str]:
    """Return the nodes from the outputs of attention back to their products and scales."""
    names, front = set[str](), [value for value in graph.outputs if value.name in TAP_OUTPUTS]
    while front:
        value = front.pop()
        node = value.producer()
        if node is None or not _is_float(value):
            continue
        names.add(_name(node))
        if node.op_type == "MatMul":
            scale = node.inputs[0].producer() if node.inputs[0] is not None else None
            names |= {_name(scale)} if scale is not None and scale.op_type == "Mul" else set()
        elif node.op_type in MOVES:
            front += [source for source in node.inputs if source is not None]
    return names


def _nodes_of_kind(graph: ir.Graph, operators: Collection[str]) -> set[str]:
    return {_name(node) for node in graph if node.op_type in operators}


def patterns_by_module(graph: ir.Graph, names: Collection[str]) -> Iterator[str]:
    """Yield the nodes, with one pattern for a module whose nodes, submodules included, are all among them."""
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
    """Return the nodes that compute the float inputs of `node`; weights and graph inputs have none."""
    sources = [value for value in node.inputs if value is not None and _is_float(value)]
    return [maker for value in sources if (maker := value.producer()) is not None]


def _users(node: ir.Node) -> list[ir.Node]:
    """Return the nodes that read the float outputs of `node`, except those that read any type."""
    uses = (use for value in node.outputs if _is_float(value) for use in value.uses())
    return [use.node for use in uses if use.node.op_type not in ANY_TYPE]


def _is_output(node: ir.Node) -> bool:
    return any(value.is_graph_output() for value in node.outputs)


def _computes_floats(node: ir.Node) -> bool:
    return any(_is_float(value) for value in node.outputs)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _module(node: ir.Node) -> str:
    return _name(node).rpartition("/")[0]


def _name(node: ir.Node) -> str:
    return node.name or ""
