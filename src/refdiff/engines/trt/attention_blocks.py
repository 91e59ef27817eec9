"""The attentions of a parsed network, and what keeps TensorRT from computing one in a single kernel.

An attention is a product, a softmax of it, and a product of that. Fused, its logits and probabilities never
reach memory. In: a parsed network. Out: an `AttentionBlock` for each softmax between two products; whether a
built plan fused it is added by `plan_layers`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from refdiff.engines.trt.lint import layer_kind, type_name

HEAD_SIZES = range(16, 257, 8)
"""Of TensorRT's fused attention (TensorRT#2981). Seen with TensorRT-RTX 1.7.1: 8 is left unfused."""


@dataclass(frozen=True, kw_only=True)
class AttentionBlock:
    """One attention; its three nodes are named as in the ONNX file."""

    product: str
    softmax: str
    mixing: str
    """The product of probabilities and values."""
    heads: int | None
    """None where the network does not keep them as an axis of their own."""
    head_size: int
    precision: str
    """Of the first product, as TensorRT calls it, such as "HALF"."""
    obstacles: tuple[str, ...] = ()
    """What keeps it from being fused, as far as the network shows."""
    fused: bool | None = None
    """Whether the plan computes it in one kernel; None where nothing was built, or TensorRT did not say."""
    kernel: str | None = None
    """The plan's layer that holds the softmax."""


def attention_blocks(network: Any) -> tuple[AttentionBlock, ...]:
    """All attentions of a network, in the order of its layers.

    Args:
        network: a whole one, as `parsing` returns it.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    wiring = _Wiring(network, layers)
    found = (wiring.attention(layer) for layer in layers if layer_kind(layer) == "SOFTMAX")
    return tuple(block for block in found if block is not None)


class _Wiring:
    """Who makes a tensor, who reads it, and which ones leave the graph."""

    def __init__(self, network: Any, layers: Sequence[Any]) -> None:
        self._makers: dict[str, Any] = {}
        self._readers: Mapping[str, list[Any]] = defaultdict(list)
        for layer in layers:
            for index in range(layer.num_outputs):
                self._makers[layer.get_output(index).name] = layer
            for tensor in _inputs(layer):
                if layer_kind(layer) != "SHAPE":  # asks for sizes, not for values
                    self._readers[tensor.name].append(layer)
        self._outputs = {network.get_output(index).name for index in range(network.num_outputs)}

    def attention(self, softmax: Any) -> AttentionBlock | None:
        """The attention around a softmax; None where it is no attention's."""
        before, after = self._to_product(softmax.get_input(0)), self._to_mixing(softmax.get_output(0))
        if not before or not after:
            return None
        product, mixing = before[-1], after[-1]
        queries = product.get_input(0)
        shape, precision = tuple(queries.shape), type_name(queries.dtype)
        inside = [*before[::-1], softmax, *after]  # all but the last of them must not be seen
        return AttentionBlock(
            product=str(product.name),
            softmax=str(softmax.name),
            mixing=str(mixing.name),
            heads=shape[1] if len(shape) == _RANK_WITH_HEADS else None,
            head_size=shape[-1],
            precision=precision,
            obstacles=(
                *_of_arithmetic(shape[-1], tuple(mixing.get_input(1).shape)[-1], precision),
                *_of_bias(before),
                *self._of_readers(inside),
            ),
        )

    def _to_product(self, tensor: Any, depth: int = 0) -> list[Any]:
        """From the softmax back to the product, the product last; empty where there is none."""
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
        """From the softmax on to the product with the values, that last; empty where there is none."""
        for layer in self._readers[tensor.name]:
            if layer_kind(layer) == "MATRIX_MULTIPLY":
                return [layer]
            if layer_kind(layer) in _BETWEEN and depth <= _DEPTH:
                path = self._to_mixing(layer.get_output(0), depth + 1)
                if path:
                    return [layer, *path]
        return []

    def _of_readers(self, inside: Sequence[Any]) -> Iterator[str]:
        """Logits or probabilities that somebody else wants to see."""
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
"""Layers between a product and its softmax, at most: scale, mask, position biases, reshapes, casts."""

_BETWEEN = frozenset({"CAST", "ELEMENTWISE", "IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE"})
"""Kinds of layers that stand between product and softmax, or softmax and product."""


def _of_arithmetic(head_size: int, value_size: int, precision: str) -> Iterator[str]:
    if precision == "FLOAT":  # seen with TensorRT-RTX 1.7.1: none of them is fused
        yield "products in float32"
    if head_size not in HEAD_SIZES:
        yield f"heads of {head_size}, expected 16 to 256 in steps of 8"
    if value_size != head_size:  # seen with TensorRT-RTX 1.7.1: values padded to the same width are fused
        yield f"values of {value_size}, expected as wide as its heads, {head_size}"


def _of_bias(before: Sequence[Any]) -> Iterator[str]:
    """SAM's relative positions, which are added along rows and columns of keys."""
    for layer in before:
        if layer_kind(layer) == "ELEMENTWISE" and len(layer.get_output(0).shape) > _RANK_WITH_HEADS:
            yield "position bias by rows and columns"
            return


def _inputs(layer: Any) -> list[Any]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]
