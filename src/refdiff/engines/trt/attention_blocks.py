"""Find the attentions of a network, what keeps TensorRT from fusing each, and which ones a plan fused.

An attention is a product, a softmax of it, and a product of that. Fused into one kernel, its logits and
probabilities never reach memory. In: a parsed network, and the kernels of the plan that was built from it:
the lines of the build log, which need no GPU, or a loaded engine, whose inspector reports the same. Out: an
`AttentionBlock` for each softmax between two products.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from refdiff.engines.trt.flavour import member_name
from refdiff.engines.trt.parsing import layer_kind

HEAD_SIZES = range(16, 257, 8)
"""Head sizes of TensorRT's fused attention (TensorRT#2981). TensorRT-RTX 1.7.1 does not fuse heads of 8."""


@dataclass(frozen=True, kw_only=True)
class AttentionBlock:
    """One attention; its three nodes have their names of the ONNX file.

    All three are the same node where the graph has ONNX's `Attention`, which is one kernel in every plan.
    """

    product: str
    softmax: str
    mixing: str
    """The product of probabilities and values."""
    heads: int | None
    """None where the network has no separate axis for them."""
    head_size: int
    precision: str
    """Type of the first product in TensorRT's words, such as "HALF"."""
    obstacles: tuple[str, ...] = ()
    """Reasons why it cannot be fused, as far as the network shows."""
    fused: bool | None = None
    """True if the plan computes it in one kernel; None if nothing was built or TensorRT did not say."""
    kernel: str | None = None
    """Name of the plan's layer that contains the softmax."""


def attention_blocks(network: Any) -> tuple[AttentionBlock, ...]:
    """Return all attentions of a network, in the order of its layers.

    Args:
        network: one that was parsed without refusals.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    wiring = _Wiring(network, layers)
    ask = {"SOFTMAX": wiring.attention, "ATTENTION_INPUT": _operator_block}
    found = (ask[layer_kind(layer)](layer) for layer in layers if layer_kind(layer) in ask)
    return tuple(block for block in found if block is not None)


def _operator_block(layer: Any) -> AttentionBlock:
    """Return the attention that a node `Attention` is: product, softmax and mixing are that one node."""
    queries, name = layer.get_input(0), str(layer.name).removesuffix(_OPERATOR_SUFFIX)
    shape = tuple(queries.shape)
    return AttentionBlock(
        product=name,
        softmax=name,
        mixing=name,
        heads=shape[1],
        head_size=shape[-1],
        precision=member_name(queries.dtype),
    )


_OPERATOR_SUFFIX = "_AttentionInput"
"""What TensorRT's parser adds to a node's name for the first of the two layers it makes of an `Attention`."""


class _Wiring:
    """Maps tensors to the layers that produce and read them, and knows the graph's outputs."""

    def __init__(self, network: Any, layers: Sequence[Any]) -> None:
        self._makers: dict[str, Any] = {}
        self._readers: Mapping[str, list[Any]] = defaultdict(list)
        for layer in layers:
            for index in range(layer.num_outputs):
                self._makers[layer.get_output(index).name] = layer
            for tensor in _inputs(layer):
                if layer_kind(layer) != "SHAPE":  # reads sizes, not values
                    self._readers[tensor.name].append(layer)
        self._outputs = {network.get_output(index).name for index in range(network.num_outputs)}

    def attention(self, softmax: Any) -> AttentionBlock | None:
        """Return the attention around a softmax; None if there is none."""
        before, after = self._to_product(softmax.get_input(0)), self._to_mixing(softmax.get_output(0))
        if not before or not after:
            return None
        product, mixing = before[-1], after[-1]
        queries = product.get_input(0)
        shape, precision = tuple(queries.shape), member_name(queries.dtype)
        inside = [*before[::-1], softmax, *after]  # no tensor between them may be read elsewhere
        return AttentionBlock(
            product=str(product.name),
            softmax=str(softmax.name),
            mixing=str(mixing.name),
            heads=shape[1] if len(shape) == _RANK_WITH_HEADS else None,
            head_size=shape[-1],
            precision=precision,
            obstacles=(
                *_single_obstacles(shape),
                *_type_obstacles(shape[-1], tuple(mixing.get_input(1).shape)[-1], precision),
                *_bias_obstacles(before),
                *self._reader_obstacles(inside),
            ),
        )

    def _to_product(self, tensor: Any, depth: int = 0) -> list[Any]:
        """Return the layers from the softmax back to the product, product last; empty if there is none."""
        layer = self._makers.get(tensor.name)
        if layer is None or depth > _DEPTH:
            return []
        if layer_kind(layer) == "MATRIX_MULTIPLY":
            return [layer]
        if layer_kind(layer) not in _BETWEEN:
            return []
        paths = (self._to_product(source, depth + 1) for source in _inputs(layer))
        return next(([layer, *path] for path in paths if path), [])

    def _to_mixing(self, tensor: Any, depth: int = 0) -> list[Any]:
        """Return the layers from the softmax to the product with the values; empty if there is none."""
        for layer in self._readers[tensor.name]:
            if layer_kind(layer) == "MATRIX_MULTIPLY":
                return [layer]
            if layer_kind(layer) in _BETWEEN and depth <= _DEPTH:
                path = self._to_mixing(layer.get_output(0), depth + 1)
                if path:
                    return [layer, *path]
        return []

    def _reader_obstacles(self, inside: Sequence[Any]) -> Iterator[str]:
        """Yield logits or probabilities that are also read outside the attention."""
        what = "logits"
        for layer, following in pairwise(inside):
            what = "probabilities" if layer_kind(layer) == "SOFTMAX" else what
            tensor = layer.get_output(0)
            if tensor.name in self._outputs:
                yield f"its {what} are the output {tensor.name}"
            for reader in self._readers[tensor.name]:
                if reader is not following:
                    yield f"its {what} are also read by {reader.name}"


_RANK_WITH_HEADS = 4
_DEPTH = 8
"""Most layers between a product and its softmax: scale, mask, position biases, reshapes, casts."""

_BETWEEN = frozenset({"CAST", "ELEMENTWISE", "IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE"})
"""Kinds of layers that may lie between product and softmax, or softmax and product."""


def _single_obstacles(shape: tuple[int, ...]) -> Iterator[str]:
    if len(shape) == _RANK_WITH_HEADS and shape[:2] == (1, 1):  # measured with TensorRT-RTX 1.7.1
        yield "a single head of a single image"


def _type_obstacles(head_size: int, value_size: int, precision: str) -> Iterator[str]:
    if precision == "FLOAT":  # measured with TensorRT-RTX 1.7.1: none is fused
        yield "products in float32"
    if head_size not in HEAD_SIZES:
        yield f"heads of {head_size}, expected 16 to 256 in steps of 8"
    if value_size != head_size:  # measured with TensorRT-RTX 1.7.1: padded to the same width, they are fused
        yield f"values of {value_size}, expected as wide as its heads, {head_size}"


def _bias_obstacles(before: Sequence[Any]) -> Iterator[str]:
    """Yield SAM's relative positions, which are added along rows and columns of keys."""
    for layer in before:
        if layer_kind(layer) == "ELEMENTWISE" and len(layer.get_output(0).shape) > _RANK_WITH_HEADS:
            yield "position bias by rows and columns"
            return


def _inputs(layer: Any) -> list[Any]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_LINE_NAME = re.compile(r"^Name: (.*?), LayerType: ")


@dataclass(frozen=True, kw_only=True)
class PlanLayer:
    """One kernel of a plan."""

    name: str
    nodes: frozenset[str]
    """Nodes of the ONNX file that it computes in whole or in part."""


def layers_in_log(lines: Iterable[str]) -> tuple[PlanLayer, ...]:
    """Read the layers of a plan from its build log, for all optimization profiles; empty if it lists none.

    Args:
        lines: those with `monitor.LAYER_LINE`.
    """
    found = ((match[1], line) for line in lines if (match := _LINE_NAME.match(line)))
    return tuple(PlanLayer(name=name, nodes=frozenset(_NODE.findall(line))) for name, line in found)


def layers_of_engine(module: Any, engine: Any) -> tuple[PlanLayer, ...]:
    """Read the layers of a loaded engine from its inspector; empty if the plan contains no details.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        engine: a deserialized one.
    """
    text = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    layers = json.loads(text or "{}").get("Layers", [])
    return tuple(
        PlanLayer(name=str(each.get("Name", "")), nodes=frozenset(_NODE.findall(str(each.get("Metadata")))))
        for each in layers
        if isinstance(each, dict)  # without details, a layer is only a name
    )


def mark_fused(blocks: Sequence[AttentionBlock], layers: Sequence[PlanLayer]) -> tuple[AttentionBlock, ...]:
    """Return attentions with `fused` and `kernel` set where the plan's layers show them.

    One is fused if every kernel that contains its softmax (one for each optimization profile) contains both
    of its products, too.
    """
    return tuple(_mark_fused(block, layers) for block in blocks)


def _mark_fused(block: AttentionBlock, layers: Sequence[PlanLayer]) -> AttentionBlock:
    kernels = [layer for layer in layers if block.softmax in layer.nodes]
    if not kernels:
        return block
    fused = all({block.product, block.mixing} <= layer.nodes for layer in kernels)
    if block.product == block.softmax:  # other kernels only move its inputs and its output
        kernels = [layer for layer in kernels if "mha" in layer.name] or kernels
    return dataclasses.replace(block, fused=fused, kernel=kernels[0].name)
