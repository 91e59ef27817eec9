"""Which nodes can be held in eight bits, and which of them stay in half precision by rule.

Can: a product or convolution with a constant weight, and an embedding, which is a weight looked up row by
row. Products of two computed tensors (inside attentions) and sums (residuals) never are.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from refdiff.contracts.recipe import Rule, match_rules
from refdiff.passes.keep_fp32 import MOVES, closed, weighted

_AXIS = {"MatMul": 1, "Conv": 0, "ConvTranspose": 1, "Gather": 0}

_LEFT: dict[str, tuple[tuple[str, str], ...]] = {
    "unet": (
        ("unet.conv_in/", "first convolution: the latent itself"),
        ("unet.conv_out/", "last convolution: the prediction itself"),
        ("conv_shortcut/", "shortcut: part of the residual stream"),
        (".proj_out/", "output projection: added to the residual stream"),
    ),
    "vae_encoder": (
        ("conv_in/", "first convolution: the picture itself"),
        ("conv_out/", "last convolution: the posterior itself"),
        ("quant_conv/", "last convolution: the posterior itself"),
        ("conv_shortcut/", "shortcut: part of the residual stream"),
    ),
    "sam_encoder": (("patch_embed", "first convolution: the picture itself"),),
    "sam_masks": (
        ("hypernetworks", "heads: a few small products that decide every pixel"),
        ("upscaling", "upscaling: two small products that draw every pixel"),
    ),
}
"""Graph -> parts of node names and the reason (FIELD §2: TensorRT#4212, #3724)."""


_WEIGHTS_ALONE: dict[str, tuple[tuple[str, str], ...]] = {
    "sam_encoder": (
        ("*.blocks.0.*", "first block: it reads the picture, and later blocks add to what it rounded"),
        (
            "*.mlp.lin2/*",
            "behind a GELU: what is near zero on one side and large on the other loses half of the levels",
        ),
        ("*.neck.*", "neck: it makes the embedding that every mask is drawn from"),
    ),
    "unet": (("*time_emb*", "time embedding: one small product per block, added everywhere"),),
}
"""Graph -> patterns of node names and the reason (docs/precision.md has the measurements)."""


def quantisable(graph: ir.Graph) -> tuple[str, ...]:
    """Names of the nodes that can be, in the graph's order."""
    return tuple(
        node.name for node in graph if node.name and (_has_constant_weight(node) or is_embedding(node))
    )


def eight_bit_nodes(graph: ir.Graph, *, islands: Iterable[Rule], left: Iterable[Rule]) -> tuple[str, ...]:
    """All that can be, but for what rules name: islands in fp32, and what is left in half precision."""
    known = frozenset(node.name or "" for node in graph)
    out = closed(graph, match_rules(islands, known, where=graph.name or "the graph"))
    out |= match_rules(left, known, where=graph.name or "the graph")
    return tuple(name for name in quantisable(graph) if name not in out)


def default_weights_alone(name: str, nodes: Collection[str]) -> tuple[Rule, ...]:
    """The rules by which some of these nodes of the graph `name` hold their weights alone in eight bits."""
    return tuple(
        Rule(nodes=(pattern,), because=because, origin="rule")
        for pattern, because in _WEIGHTS_ALONE.get(name, ())
        if fnmatch.filter(nodes, pattern)
    )


def data_inputs(graph: ir.Graph, nodes: Collection[str]) -> tuple[str, ...]:
    """Names of the tensors that these nodes read, each once; embeddings read none but their weight."""
    inputs = (node.inputs[0] for node in graph if node.name in nodes and not is_embedding(node))
    return tuple(dict.fromkeys(value.name for value in inputs if value is not None and value.name))


def is_embedding(node: ir.Node) -> bool:
    """Rows of a constant float table, picked by computed numbers."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return False
    table, numbers = node.inputs[0], node.inputs[1]
    if table is None or numbers is None or not table.is_initializer() or numbers.is_initializer():
        return False
    return table.dtype == ir.DataType.FLOAT and table.shape is not None and len(table.shape) == 2


def output_axis(node: ir.Node) -> int:
    """The weight's axis of output channels; of an embedding, its rows."""
    if node.op_type == "Gemm":
        return 0 if _flag(node, "transB") else 1
    return _AXIS[node.op_type]


def default_left(name: str, graph: ir.Graph) -> tuple[Rule, ...]:
    """The rules that leave nodes of the graph `name` in half precision."""
    can = quantisable(graph)
    rules = []
    for part, because in _LEFT.get(name, ()):
        nodes = tuple(node for node in can if part in node)
        if nodes:
            rules.append(Rule(nodes=nodes, because=because, origin="rule"))
    if name.startswith("clip"):
        for found, because in (
            (_starts(graph), "first projection: the picture itself, most of FP8's error"),
            (_ends(graph), "last projection: the vector itself"),
        ):
            if nodes := tuple(dict.fromkeys(found)):
                rules.append(Rule(nodes=nodes, because=because, origin="rule"))
    tapped = tuple(node for node in _tapped(graph) if node in set(can))
    if tapped:
        because = "tapped Q and K: their product is what is read"
        rules.append(Rule(nodes=tapped, because=because, origin="rule"))
    return tuple(rules)


def _has_constant_weight(node: ir.Node) -> bool:
    if not weighted(node):
        return False
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        return False
    if node.op_type == "Gemm" and _flag(node, "transA"):
        return False
    shape = None if node.inputs[1] is None else node.inputs[1].shape
    return shape is not None and (node.op_type != "MatMul" or len(shape) == 2)


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() == 1


def _starts(graph: ir.Graph) -> Iterator[str]:
    """The products that read an input of the graph as it is, or moved about."""
    for node in graph:
        data = node.inputs[0] if _has_constant_weight(node) else None
        if node.name and data is not None and not any(_behind(data, MOVES)):
            yield node.name


def _ends(graph: ir.Graph) -> Iterator[str]:
    """The last product before each output."""
    for value in graph.outputs:
        node = value.producer()
        while node is not None and not _has_constant_weight(node):
            source = node.inputs[0]
            node = source.producer() if source is not None else None
        if node is not None and node.name:
            yield node.name


def _tapped(graph: ir.Graph) -> Iterator[str]:
    """The products that make the Q and K of each tap."""
    for output in graph.outputs:
        if output.name != "taps":
            continue
        for product in _behind(output, MOVES):
            for source in product.inputs:
                if source is not None:
                    yield from (node.name for node in _behind(source, {*MOVES, "Mul"}) if node.name)


def _behind(value: ir.Value, through: Collection[str]) -> Iterator[ir.Node]:
    """The nodes a value comes from, seen through operators of these kinds."""
    node = value.producer()
    if node is None:
        return
    if node.op_type not in through:
        yield node
        return
    for source in node.inputs:
        if source is not None:
            yield from _behind(source, through)
