"""Graphs for tests of the precision passes: small ones from text, and the miniature's."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

import refdiff.miniature
from refdiff.contracts.recipe import Half, match_rules
from refdiff.contracts.session import Array
from refdiff.engines.intermediate_tensors import probe
from refdiff.passes.half_precision import HalfPrecision
from refdiff.passes.keep_fp32 import close_regions, default_fp32_nodes

BUNDLE = Path(refdiff.miniature.__file__).parent / "bundle"

MINIATURE = tuple(sorted(path.stem for path in BUNDLE.glob("*.onnx")))
"""Names of its graphs; `unet_taps` among them."""

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def small_graph(
    signature: str, body: str, weights: Mapping[str, Array] | None = None, *, opset: int = 18
) -> ir.Model:
    """A graph from ONNX's text form, e.g. "float[2] x => float[2] y" and "y = Add(x, x)".

    A node is named after its first output; "norm__mul" becomes "norm/mul", a node of the module "norm".
    """
    read, _, made = signature.partition("=>")
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({read}) => ({made}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for each in proto.graph.node:
        each.name = each.output[0].replace("__", "/")
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    ShapeInferencePass()(model)
    return model


def miniature_graph(name: str) -> ir.Model:
    return ir.load(BUNDLE / f"{name}.onnx")


def fp32_nodes_of(model: ir.Model, half: Half = "fp16") -> frozenset[str]:
    """The nodes in fp32 regions by rule."""
    names = frozenset(node.name or "" for node in model.graph)
    return close_regions(
        model.graph, match_rules(default_fp32_nodes(model.graph, half), names, where="graph")
    )


def half_graph(name: str, half: Half = "fp16") -> tuple[ir.Model, frozenset[str]]:
    """A graph of the miniature in half precision, and the nodes that are not."""
    model = miniature_graph(name)
    fp32 = fp32_nodes_of(model, half)
    return HalfPrecision(half, fp32)(model), fp32


def node(model: ir.Model, name: str) -> ir.Node:
    return next(each for each in model.graph if each.name == name)


def casts(model: ir.Model) -> list[ir.Node]:
    return [each for each in model.graph if each.op_type == "Cast"]


def outputs(
    model: ir.Model, feeds: Mapping[str, Array], names: tuple[str, ...] | None = None, folder: Path = BUNDLE
) -> dict[str, Array]:
    """What a graph makes, every half-precision result rounded."""
    wanted = names or tuple(str(value.name) for value in model.graph.outputs)
    return {name: values for _, name, values in probe(model, [feeds], wanted, folder=folder)}


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
