"""Reading a graph whose inner tensors carry no types: a converted bundle leaves them out."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass


def load_typed(path: Path) -> ir.Model:
    """The graph, every tensor with its type and, where that follows, its shape."""
    model = ir.load(path)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass(data_prop=False)(model)
    return model
