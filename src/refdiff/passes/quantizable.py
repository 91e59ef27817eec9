"""Choose the nodes to quantize: those that can be, and the built-in rules for those that are excluded.

A product or convolution with a constant weight can be quantized, and so can an embedding, which is a weight
looked up row by row. Products of two computed tensors (inside attentions) and sums (residuals) are never
quantized.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from refdiff.contracts.graphs import TAP_OUTPUTS
from refdiff.contracts.recipe import Rule, match_rules
from refdiff.passes.keep_fp32 import MOVES, close_regions, is_weighted, last_products

_AXIS = {"MatMul": 1, "Conv": 0, "ConvTranspose": 1, "Gather": 0}

_EXCLUDED: dict[str, tuple[tuple[str, str], ...]] = {
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
    "sam_encoder": (
        ("patch_embed", "first convolution: the picture itself"),
        (".neck.", "neck: it makes the embedding that every mask is drawn from"),
        (".downsample.", "downsampling between the stages of a TinyViT: most of its loss in eight bits"),
        (".local_conv/", "depthwise convolution of a TinyViT: one range for channels that differ"),
    ),
    "sam_masks": (
        ("hypernetworks", "heads: a few small products that decide every pixel"),
        ("upscaling", "upscaling: two small products that draw every pixel"),
    ),
}
"""Graph -> parts of node names, and the reason (docs/precision.md, "Eight bits"). The reasons are written to
recipes, so their text stays as it is."""


_WEIGHTS_ALONE: dict[str, tuple[tuple[str, str], ...]] = {
    "sam_encoder": (
        ("*.blocks.0.*", "first block: it reads the picture, and later blocks add to what it rounded"),
        (
            "*.mlp.lin2/*",
            "behind a GELU: what is near zero on one side and large on the other loses half of the levels",
        ),
        (
            "*.mlp.fc2/*",
            "behind a GELU: what is near zero on one side and large on the other loses half of the levels",
        ),
    ),
    "unet": (("*time_emb*", "time embedding: one small product per block, added everywhere"),),
}
"""Graph -> patterns of node names, and the reason (docs/precision.md has the measurements)."""


def quantizable_nodes(graph: ir.Graph) -> tuple[str, ...]:
    """Return the names of the nodes that can be quantized, in the graph's order."""
    return tuple(
        node.name for node in graph if node.name and (_has_constant_weight(node) or is_embedding(node))
    )


def choose_eight_bit_nodes(
    graph: ir.Graph, *, fp32_rules: Iterable[Rule], excluded: Iterable[Rule]
) -> tuple[str, ...]:
    """Return the quantizable nodes that are neither in fp32 regions nor excluded, in the graph's order."""
    known, where = frozenset(node.name or "" for node in graph), graph.name or "the graph"
    kept = close_regions(graph, match_rules(fp32_rules, known, where=where))
    kept |= match_rules(excluded, known, where=where)
    return tuple(name for name in quantizable_nodes(graph) if name not in kept)


def default_weights_alone(name: str, nodes: Collection[str]) -> tuple[Rule, ...]:
    """Return the built-in rules for nodes of the graph `name` that have only their weights quantized."""
    return tuple(
        Rule(nodes=(pattern,), because=because, origin="rule")
        for pattern, because in _WEIGHTS_ALONE.get(name, ())
        if fnmatch.filter(nodes, pattern)
    )


def data_inputs(graph: ir.Graph, nodes: Collection[str]) -> tuple[str, ...]:
    """Return the names of the tensors these nodes read, each once; embeddings read only their weight."""
    inputs = (node.inputs[0] for node in graph if node.name in nodes and not is_embedding(node))
    return tuple(dict.fromkeys(value.name for value in inputs if value is not None and value.name))


def is_embedding(node: ir.Node) -> bool:
    """Return whether a node looks up rows of a constant float table by computed indices."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return False
    table, indices = node.inputs[0], node.inputs[1]
    if table is None or indices is None or not table.is_initializer() or indices.is_initializer():
        return False
    return table.dtype == ir.DataType.FLOAT and table.shape is not None and len(table.shape) == 2


def output_axis(node: ir.Node) -> int:
    """Return the weight's axis of output channels; for an embedding, its rows."""
    if node.op_type == "Gemm":
        return 0 if _has_flag(node, "transB") else 1
    return _AXIS[node.op_type]


def default_excluded(name: str, graph: ir.Graph) -> tuple[Rule, ...]:
    """Return the built-in rules for nodes of the graph `name` that stay in half precision."""
    quantizable = quantizable_nodes(graph)
    rules = []
    for part, because in _EXCLUDED.get(name, ()):
        nodes = tuple(node for node in quantizable if part in node)
        if nodes:
            rules.append(Rule(nodes=nodes, because=because, origin="rule"))
    if name.startswith("clip"):
        for found, because in (
            (_first_products(graph), "first projection: the picture itself, most of FP8's error"),
            (last_products(graph), "last projection: the vector itself"),
        ):
            if nodes := tuple(dict.fromkeys(found)):
                rules.append(Rule(nodes=nodes, because=because, origin="rule"))
    tapped = tuple(node for node in _tapped_products(graph) if node in set(quantizable))
    if tapped:
        because = "tapped Q and K: their product is what is read"
        rules.append(Rule(nodes=tapped, because=because, origin="rule"))
    return tuple(rules)


def _has_constant_weight(node: ir.Node) -> bool:
    if not is_weighted(node):
        return False
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        return False
    if node.op_type == "Gemm" and _has_flag(node, "transA"):
        return False
    shape = None if node.inputs[1] is None else node.inputs[1].shape
    return shape is not None and (node.op_type != "MatMul" or len(shape) == 2)


def _has_flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() == 1


def _first_products(graph: ir.Graph) -> Iterator[str]:
    """Yield the products that read an input of the graph, directly or after data movement."""
    for node in graph:
        data = node.inputs[0] if _has_constant_weight(node) else None
        if node.name and data is not None and not any(_sources(data, MOVES)):
            yield node.name


def _tapped_products(graph: ir.Graph) -> Iterator[str]:
    """Yield the products that make the Q and K of each tap."""
    for output in graph.outputs:
        if output.name not in TAP_OUTPUTS:
            continue
        for product in _sources(output, MOVES):
            for source in product.inputs:
                if source is not None:
                    yield from (node.name for node in _sources(source, {*MOVES, "Mul"}) if node.name)


def _sources(value: ir.Value, through: Collection[str]) -> Iterator[ir.Node]:
    """Yield the nodes that a value comes from, looking through operators of these kinds."""
    node = value.producer()
    if node is None:
        return
    if node.op_type not in through:
        yield node
        return
    for source in node.inputs:
        if source is not None:
            yield from _sources(source, through)
