"""How much arithmetic a written graph holds: the multiply-adds of its products and convolutions.

Everything else (norms, activations, additions) is left out, as in METHOD §4's table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from refdiff.errors import InputError


def multiply_adds(path: Path, sizes: Mapping[str, int]) -> int:
    """Multiply-adds of one run.

    Args:
        path: an exported graph.
        sizes: of its named dimensions, {"b": 1} for instance.

    Raises:
        InputError: a shape the count needs is not in the file.
    """
    return sum(_of_node(node, sizes) for node in ir.load(path).graph)


def _of_node(node: ir.Node, sizes: Mapping[str, int]) -> int:
    if node.op_type in ("MatMul", "Gemm"):
        inner = _shape(node, node.inputs[0], sizes)[0 if _transposed(node) else -1]
        return math.prod(_shape(node, node.outputs[0], sizes)) * inner
    if node.op_type == "Conv":
        kernel = _shape(node, node.inputs[1], sizes)  # [out, in / groups, ...]
        return math.prod(_shape(node, node.outputs[0], sizes)) * math.prod(kernel[1:])
    if node.op_type == "ConvTranspose":
        kernel = _shape(node, node.inputs[1], sizes)  # [in, out / groups, ...]
        return math.prod(_shape(node, node.inputs[0], sizes)) * math.prod(kernel[1:])
    if node.op_type == "Einsum":
        return _of_einsum(node, sizes)
    return 0


def _of_einsum(node: ir.Node, sizes: Mapping[str, int]) -> int:
    """Of one product of two tensors: the sizes of all its letters."""
    terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
    letters: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        letters |= dict(zip(term, _shape(node, value, sizes), strict=True))
    return math.prod(letters.values())


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1


def _shape(node: ir.Node, value: ir.Value | None, sizes: Mapping[str, int]) -> Sequence[int]:
    if value is None or value.shape is None:
        raise InputError(f"{node.name}: a shape is missing; export the graph again")
    return [size if isinstance(size, int) else _named(node, str(size.value), sizes) for size in value.shape]


def _named(node: ir.Node, name: str, sizes: Mapping[str, int]) -> int:
    """A dimension the contract names, or a product of numbers and names as the exporter writes them."""
    factors = [int(part) if part.isdigit() else sizes.get(part) for part in name.split("*")]
    if None in factors:
        raise InputError(f"{node.name}: got no size of dimension {name}, have: {', '.join(sizes) or 'none'}")
    return math.prod(factor for factor in factors if factor is not None)
