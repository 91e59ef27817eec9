"""Run the graph `clip_image` on the host in float32, its attention in blocks of queries.

For images with more tokens than an engine's attention has memory for: the logits of t tokens are t * t floats
for every head, 50 GB for a 4K image in ViT-B/16. Here no tensor of that size exists: the mask, the logits and
the softmax are computed for a few queries at a time, which changes only the order of sums. Nothing is rounded
to fewer bits: a bundle in fewer bits is computed with its own weights in float32.

Axes: t = tokens; the last two axes of a `Rows` are queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.contracts.onnx_file import OnnxGraph
from refdiff.contracts.session import Array, Float

BLOCK_VALUES = 2**20
"""Most float32 values of one head's block of queries: 4 MiB, which a processor's cache and numpy's allocator
hold; a few are in memory at a time. Larger blocks take eight times as long, most of it for fresh memory."""


@dataclass(frozen=True)
class Rows:
    """An array that is computed a head and a few rows of its second last axis at a time."""

    shape: tuple[int, ...]
    at: Callable[[slice, slice], Array]
    """Compute the given heads and rows; an array without heads is the same for all."""


_Value = Array | Rows


def unsupported_operators(graph: OnnxGraph) -> set[str]:
    """Return the operators of a graph that `run_on_host` cannot run."""
    return {node.operator for node in graph.nodes} - set(_OPERATORS)


def run_on_host(graph: OnnxGraph, feeds: Mapping[str, _Value]) -> dict[str, Float]:
    """Run once and return the graph's outputs.

    Args:
        graph: read by `read_onnx`, without `unsupported_operators`.
        feeds: its inputs; a large one may be `Rows`.
    """
    values: dict[str, _Value] = {**graph.weights, **feeds}
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    for index, node in enumerate(graph.nodes):
        results = _OPERATORS[node.operator](node.attributes, *(values[name] for name in node.inputs if name))
        values.update(zip(node.outputs, results if isinstance(results, list) else [results], strict=True))
        for name in node.inputs:
            if last_use[name] == index and name not in graph.outputs:
                values.pop(name, None)
    return {name: np.asarray(values[name], np.float32) for name in graph.outputs}


def _by_rows(compute: Callable[..., Array]) -> Callable[..., _Value]:
    """Let an operator that treats every row alike take `Rows`: it then runs when they are computed."""

    def run(attributes: Mapping[str, Any], *inputs: _Value) -> _Value:
        lazy = [each for each in inputs if isinstance(each, Rows)]
        if not lazy:
            return compute(attributes, *inputs)
        shape = max((each.shape for each in lazy), key=len)

        def at(heads: slice, rows: slice) -> Array:
            return compute(attributes, *(e.at(heads, rows) if isinstance(e, Rows) else e for e in inputs))

        return Rows(shape, at)

    return run


def _matmul(_: Mapping[str, Any], left: _Value, right: Array) -> _Value:
    """Multiply; a product of heads' queries and keys is computed later, by rows."""
    if isinstance(left, Rows):
        return _multiply_rows(left, right)
    if left.ndim == 4 and left.shape[-2] == right.shape[-1]:  # queries and keys
        keys = np.ascontiguousarray(right)
        shape = (*left.shape[:-1], keys.shape[-1])
        return Rows(shape, lambda heads, rows: left[:, heads, rows] @ keys[:, heads])
    return np.asarray(left @ right)


def _multiply_rows(left: Rows, right: Array) -> Array:
    batch, heads, queries, keys = left.shape
    product = np.empty((batch, heads, queries, right.shape[-1]), np.float32)
    step = max(1, BLOCK_VALUES // (batch * keys))
    for head in range(heads):
        one = slice(head, head + 1)
        values = np.ascontiguousarray(right[:, one])
        for start in range(0, queries, step):
            rows = slice(start, min(start + step, queries))
            np.matmul(left.at(one, rows), values, out=product[:, one, rows])
    return product


def _softmax(_: Mapping[str, Any], logits: Array) -> Array:
    weights: Array = logits - logits.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _layer_norm(attributes: Mapping[str, Any], x: Array, weight: Array, bias: Array | None = None) -> Array:
    centered: Array = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt(np.mean(centered**2, axis=-1, keepdims=True) + attributes.get("epsilon", 1e-5))
    centered /= spread
    centered *= weight
    return centered if bias is None else centered + bias


def _sigmoid(_: Mapping[str, Any], x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives 0, as it should
        return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def _erf(_: Mapping[str, Any], x: Array) -> Array:
    """Abramowitz & Stegun 7.1.26: within 1.5e-7, the precision of float32."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    powers = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.asarray(np.copysign(1 - powers * np.exp(-x * x), x), np.float32)


def _gelu(attributes: Mapping[str, Any], x: Array) -> Array:
    return np.asarray(x * (0.5 + 0.5 * _erf(attributes, x * np.float32(0.5**0.5))), np.float32)


def _reshape(_: Mapping[str, Any], x: Array, shape: Array) -> Array:
    return x.reshape([int(side) for side in shape])


def _slice(_: Mapping[str, Any], x: Array, *bounds: Array) -> Array:
    cut = [slice(None)] * x.ndim
    for start, end, axis, *step in zip(*bounds, strict=True):
        cut[int(axis)] = slice(int(start), int(end), *map(int, step))
    return x[tuple(cut)]


def _quantize(attributes: Mapping[str, Any], x: Array, scale: Array, zero: Array | None = None) -> Array:
    """Scale an activation as its quantization would, without rounding it."""
    levels = _in_float32(x) / _along_axis(scale, x.ndim, attributes)
    return levels if zero is None else levels + _along_axis(zero, x.ndim, attributes)


def _dequantize(attributes: Mapping[str, Any], x: Array, scale: Array, zero: Array | None = None) -> Array:
    levels = x.astype(np.float32)
    if zero is not None:
        levels = levels - _along_axis(zero, x.ndim, attributes)
    return np.asarray(levels * _along_axis(scale, x.ndim, attributes), np.float32)


def _along_axis(values: Array, axes: int, attributes: Mapping[str, Any]) -> Float:
    """Return a scale or zero point in float32, one that differs along an axis shaped to fit that axis."""
    values = values.astype(np.float32)
    return values if values.size == 1 else values.reshape(-1, *(1,) * (axes - 1 - attributes.get("axis", 1)))


def _in_float32(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype == np.float16 else x


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": _by_rows(lambda _, a, b: _in_float32(a) + _in_float32(b)),
    "Mul": _by_rows(lambda _, a, b: _in_float32(a) * _in_float32(b)),
    "Div": _by_rows(lambda _, a, b: _in_float32(a) / _in_float32(b)),
    "Cast": _by_rows(lambda _, x: _in_float32(x)),
    "QuantizeLinear": _by_rows(_quantize),
    "DequantizeLinear": _by_rows(_dequantize),
    "Unsqueeze": _by_rows(lambda _, x, axes: np.expand_dims(x, tuple(int(axis) for axis in axes))),
    "Softmax": _by_rows(_softmax),
    "MatMul": lambda _, a, b: _matmul(_, a if isinstance(a, Rows) else _in_float32(a), _in_float32(b)),
    "LayerNormalization": lambda _, *inputs: _layer_norm(_, *map(_in_float32, inputs)),
    "Sigmoid": _sigmoid,
    "Erf": _erf,
    "Gelu": _gelu,
    "Shape": lambda at, x: np.array(x.shape[slice(at.get("start", 0), at.get("end"))], np.int64),
    "Squeeze": lambda _, x, *axes: np.squeeze(x, tuple(int(a) for a in axes[0]) if axes else None),
    "Concat": lambda at, *parts: np.concatenate(parts, axis=at["axis"]),
    "Split": lambda at, x: np.split(x, at["num_outputs"], axis=at["axis"]),
    "Reshape": _reshape,
    "Transpose": lambda at, x: x.transpose(at["perm"]),
    "Slice": _slice,
}
