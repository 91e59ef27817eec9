"""Measure the cost of an fp32 region in an attention: the activation memory that TensorRT-RTX plans.

    python -m benchmarks.attention_regions      (needs tensorrt-rtx)

One self-attention of SD 1.5 at 512 px (4,096 tokens, 8 heads of 40, two images), three ways: no region,
softmax alone in fp32, and softmax with the product before it. The logits are 537 MB in half precision: an
attention that holds less was fused. Writes results/attention-regions.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.records import RESULTS, add_entry
from benchmarks.rtx import RTX, build

TOKENS, HEADS, WIDTH, PICTURES = 4096, 8, 320, 2
SHAPES = {"states": (PICTURES, TOKENS, WIDTH)}

REGIONS = {"none": (), "softmax": ("softmax",), "softmax and its product": ("softmax", "logits")}

RECORD = RESULTS / "attention-regions.json"


def main() -> None:
    """Build the three graphs."""
    from refdiff.passes.half_precision import HalfPrecision

    for name, nodes in REGIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "attention.onnx"
            ir.save(HalfPrecision("fp16", nodes)(attention()), path)
            add_entry(RECORD, name, {"tensorrt_rtx": RTX.version, **build(path, SHAPES)})


def attention() -> ir.Model:
    """Return four products and a softmax, in fp32, with Q scaled first."""
    nodes: list[ir.Node] = []
    rng = np.random.default_rng(0)
    states = _value("states", (PICTURES, TOKENS, WIDTH))

    def node(operator: str, name: str, *inputs: ir.Value, **attributes: ir.Attr) -> ir.Value:
        made = ir.Node("", operator, inputs, attributes=list(attributes.values()), name=name)
        made.outputs[0].name, made.outputs[0].dtype = f"{name}.out", ir.DataType.FLOAT
        nodes.append(made)
        return made.outputs[0]

    weights: list[ir.Value] = []

    def constant(name: str, array: np.ndarray) -> ir.Value:
        weights.append(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
        weights[-1].shape, weights[-1].dtype = ir.Shape(array.shape), ir.tensor(array).dtype
        return weights[-1]

    def linear(name: str, source: ir.Value) -> ir.Value:
        values = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        return node("MatMul", name, source, constant(f"{name}.weight", values))

    def split(name: str, source: ir.Value, order: tuple[int, ...]) -> ir.Value:
        shape = constant(f"{name}.shape", np.array([0, TOKENS, HEADS, WIDTH // HEADS], np.int64))
        heads = node("Reshape", f"{name}.reshape", source, shape)
        return node("Transpose", f"{name}.transpose", heads, perm=ir.AttrInt64s("perm", order))

    scale = constant("scale", np.array((WIDTH // HEADS) ** -0.5, np.float32))
    query = split("query", node("Mul", "scaled", linear("to_q", states), scale), (0, 2, 1, 3))
    key, value = (
        split("key", linear("to_k", states), (0, 2, 3, 1)),
        split("value", linear("to_v", states), (0, 2, 1, 3)),
    )
    logits = node("MatMul", "logits", query, key)
    mixed = node("MatMul", "mixed", node("Softmax", "softmax", logits, axis=ir.AttrInt64("axis", -1)), value)
    turned = node("Transpose", "turned", mixed, perm=ir.AttrInt64s("perm", (0, 2, 1, 3)))
    flat = node("Reshape", "flat", turned, constant("flat.shape", np.array([0, TOKENS, WIDTH], np.int64)))
    out = linear("to_out", flat)
    out.name, out.shape = "out", ir.Shape((PICTURES, TOKENS, WIDTH))
    graph = ir.Graph(
        [states], [out], nodes=nodes, initializers=weights, opset_imports={"": 18}, name="attention"
    )
    return ir.Model(graph, ir_version=9)


def _value(name: str, shape: tuple[int, ...]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


if __name__ == "__main__":
    main()
