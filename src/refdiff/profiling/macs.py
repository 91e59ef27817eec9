"""How much arithmetic a written graph holds: the multiply-adds of its products and convolutions.

Everything else (norms, activations, additions) is left out, as in METHOD §4's table. A converted graph has no
shapes inside; they are inferred from the sizes then.

A bundle's multiply-adds for the shapes its graphs are fed; unknown, and why, where nobody can count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.optional import require_export
from refdiff.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import onnx_ir as ir

PURPOSE = "counting multiply-adds"


def multiply_adds(path: Path, sizes: Mapping[str, int]) -> int:
    """Multiply-adds of one run.

    Args:
        path: an exported graph.
        sizes: of its named dimensions, {"b": 1} for instance.

    Raises:
        InputError: a shape the count needs is not in the file, and does not follow from the sizes.
    """
    with require_export(PURPOSE):
        import onnx_ir as ir
    model = ir.load(path)
    if any(value.shape is None for node in model.graph for value in node.outputs):
        _infer_shapes(model, sizes)
    return sum(_of_node(node, sizes) for node in model.graph)


def _infer_shapes(model: ir.Model, sizes: Mapping[str, int]) -> None:
    """With numbers in place of the inputs' names, so that what computes a shape folds to a number."""
    with require_export(PURPOSE):
        import onnx_ir as ir
        from onnx_ir.passes.common import ShapeInferencePass
        from onnxscript.optimizer import fold_constants
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                [size if isinstance(size, int) else sizes.get(str(size.value), size) for size in value.shape]
            )
    fold_constants(model, onnx_shape_inference=True)
    ShapeInferencePass(data_prop=True)(model)


def _of_node(node: ir.Node, sizes: Mapping[str, int]) -> int:
    if node.op_type in ("MatMul", "Gemm"):
        return math.prod(_shape(node, node.outputs[0], sizes)) * _inner(node, sizes)
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


def _inner(node: ir.Node, sizes: Mapping[str, int]) -> int:
    """How many products are summed into each value."""
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1
    source = node.inputs[0]
    if source is None or source.shape is None:
        raise _missing(node)
    return _size(node, source.shape[0 if transposed else -1], sizes)


def _shape(node: ir.Node, value: ir.Value | None, sizes: Mapping[str, int]) -> Sequence[int]:
    if value is None or value.shape is None:
        raise _missing(node)
    return [_size(node, size, sizes) for size in value.shape]


def _missing(node: ir.Node) -> InputError:
    return InputError(f"{node.name}: a shape is missing; export the graph again")


def _size(node: ir.Node, size: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int:
    return size if isinstance(size, int) else _named(node, str(size.value), sizes)


def _named(node: ir.Node, name: str, sizes: Mapping[str, int]) -> int:
    """A dimension the contract names, or a sum of products of numbers and names as the exporter writes it."""
    total = 0
    for term in name.split("+"):
        factors = [
            int(part) if part.isdigit() else sizes.get(part) for part in map(str.strip, term.split("*"))
        ]
        if None in factors:
            raise InputError(
                f"{node.name}: got no size of dimension {name}, have: {', '.join(sizes) or 'none'}"
            )
        total += math.prod(factor for factor in factors if factor is not None)
    return total


Shapes = Mapping[str, tuple[int, ...]]


class Arithmetic:
    """Counts once for each graph and shape.

    `why_not` says why something is unknown; None while nothing is.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._contract = graph_contract(bundle.spec)
        self._known: dict[tuple[str, tuple[tuple[str, int], ...]], int | None] = {}
        self.why_not: str | None = None

    def __call__(self, graph: str, shapes: Shapes) -> int | None:
        """Of one run; None where it is unknown."""
        sizes = self._sizes(graph, shapes)
        key = (graph, tuple(sizes.items()))
        if key not in self._known:
            self._known[key] = self._count(graph, sizes)
        return self._known[key]

    def _sizes(self, graph: str, shapes: Shapes) -> dict[str, int]:
        """The contract's named dimensions."""
        return {
            dimension: size
            for tensor in self._contract[graph].inputs
            for dimension, size in zip(tensor.shape, shapes[tensor.name], strict=True)
            if isinstance(dimension, str)
        }

    def _count(self, graph: str, sizes: Mapping[str, int]) -> int | None:
        try:
            return int(multiply_adds(self._bundle.graph_path(graph), sizes))
        except (InputError, MissingDependencyError) as error:
            self.why_not = str(error)
            return None
