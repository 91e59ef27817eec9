"""The operators an exported graph may hold: static arithmetic that NVIDIA's ONNX parser reads.

TensorRT's parser refuses or mistreats graphs that compute shapes from data (`NonZero`, FIELD §3), and an
exporter can begin to write new operators with any release. So the list is closed: what is on it was read by
TensorRT-RTX's parser in whole graphs of this toolkit; anything else stops the export.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from refdiff.errors import InputError

READ_BY_TENSORRT = frozenset(
    {
        *("Add", "Cos", "Div", "Erf", "Mul", "Pow", "Relu", "Sigmoid", "Sin", "Sqrt", "Sub"),
        *("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"),
        *("InstanceNormalization", "LayerNormalization", "ReduceMean", "ReduceSum", "Softmax"),
        *("Cast", "Concat", "Equal", "Gather", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose"),
        *("Pad", "Shape", "Unsqueeze"),
    }
)
"""Of ONNX's own operator set."""


def check_operators(graph: ir.Graph, name: str) -> None:
    """Refuse a graph with an operator that is not on the list.

    Raises:
        InputError: names the first such operator and its node.
    """
    strangers = [node for node in graph if node.domain or node.op_type not in READ_BY_TENSORRT]
    if strangers:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(n.op_type for n in strangers).items())
        raise InputError(
            f"{name}: the exporter wrote {kinds}, first at {strangers[0].name}: not among the operators that "
            "TensorRT is known to read; export with the pinned packages (constraints.txt)"
        )
