"""Reading a graph whose inner tensors carry no types: a converted bundle leaves them out.

Is a written graph what the contract says: its inputs and outputs, name by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.errors import InputError


def load_typed(path: Path) -> ir.Model:
    """The graph, every tensor with its type and, where that follows, its shape."""
    model = ir.load(path)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass(data_prop=False)(model)
    return model


def check_contract(path: Path, graph: GraphSpec) -> None:
    """Compare the inputs and outputs of a written file with the contract, name by name.

    Raises:
        InputError: the first difference.
    """
    written = ir.load(path).graph
    _check_side(path, "input", written.inputs, graph.inputs)
    _check_side(path, "output", written.outputs, graph.outputs)


def _check_side(path: Path, side: str, written: Sequence[ir.Value], expected: Sequence[TensorSpec]) -> None:
    got = tuple(_tensor_spec(value) for value in written)
    if got == tuple(expected):
        return
    for mine, theirs in zip(expected, got, strict=False):
        if mine != theirs:
            raise InputError(
                f"{path.name}: got {side} {_text(theirs)}, expected {_text(mine)}; "
                "the model does not have the sizes its spec names"
            )
    raise InputError(f"{path.name}: got {len(got)} {side}s, expected {len(expected)}")


def _tensor_spec(value: ir.Value) -> TensorSpec:
    shape = (
        () if value.shape is None else tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    )
    dtype = "unknown" if value.dtype is None else str(value.dtype.numpy())
    return TensorSpec(value.name or "", dtype, shape)


def _text(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} {list(tensor.shape)}"
