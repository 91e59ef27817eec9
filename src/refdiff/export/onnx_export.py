"""Write one torch module as an ONNX graph; the only module that calls `torch.onnx.export`.

In: a wrapper module and its graph contract. Out: `<graph>.onnx`, its weights in `<graph>.onnx.data`, checked
against the contract. The same input gives the same bytes. Three things make the graph portable:

* attention and group norm are translated to plain operators whose shapes are static but for the batch, which
  TensorRT fuses best (TensorRT#4333 for attention, TensorRT#2691 for GroupNorm) and the precision passes
  recognize by name; GELU in the order that ONNX Runtime fuses;
* nodes are named after the torch modules they come from, `unet.mid_block.attentions.0.proj_in/Conv`, and
  outputs after their nodes: recipes, profiles and reports use these names;
* operators outside a closed list stop the export. TensorRT's parser refuses or mistreats graphs that compute
  shapes from data (`NonZero`, `OneHot`: segment-anything#425, nanosam#12), and an exporter can begin to write
  new operators with any release. TensorRT-RTX's parser has read every operator on the list in whole graphs.
"""

from __future__ import annotations

import math
import re
import warnings
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import opset18
from onnxscript.optimizer import fold_constants

from refdiff.contracts.graphs import GraphSpec
from refdiff.errors import InputError
from refdiff.passes.graph_files import check_contract

if TYPE_CHECKING:
    from torch import nn

op: Any = opset18
"""Operators applied to symbolic values while a graph is built, which onnxscript does not type."""

OPSET = 18
"""The newest operator set that TensorRT 10.3 (JetPack 6) reads in full; `Gelu` is written as `Erf` in it."""

READ_BY_TENSORRT = frozenset(
    {
        *("Add", "Cos", "Div", "Erf", "Mul", "Pow", "Relu", "Sigmoid", "Sin", "Sqrt", "Sub", "Tanh"),
        *("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "MaxPool"),
        *("InstanceNormalization", "LayerNormalization", "ReduceMean", "ReduceSum", "Softmax"),
        *("Cast", "Concat", "Equal", "Gather", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose"),
        *("Expand", "Pad", "Shape", "Unsqueeze"),
    }
)
"""Operators of ONNX's own operator set that a graph may hold."""

LARGE_GROUP = 1 << 18
"""Values per group from which a norm's sums are split. ONNX Runtime's InstanceNormalization adds them up one
after the other in single precision: an error of 1e-6 of the range at this size, 6e-6 at a million (the VAE's
first level at 512 px), 4e-5 at four million (1024 px)."""

EXTERNAL_FROM_BYTES = 1024
"""Smaller tensors stay inside the ONNX file: shapes and scalars that a parser must see."""

_TABLE_SIZE, _FOLDED_SIZE = 1 << 16, 1 << 20
"""Largest operand and result, in values, that are folded; SAM ViT-H needs 10,160 and 327,680."""

_SAMPLE_SIZES = {"b": 2, "c": 3, "p": 7, "t": 10, "n": 5, "k": 4, "q": 3}
"""Sizes of the named dimensions while tracing: all different, none 1 (a 1 would become static), t = c + p."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which the exporter lists the modules of a node, outermost first, then its own name."""

_INVENTED = re.compile(r"val_\d+")
"""The exporter's names for tensors it computed itself, such as a transposed weight."""

_NAMED_WEIGHT_SIZE = 64
"""Smaller invented constants are shapes and scalars; they keep their short names."""


def data_name(graph_name: str) -> str:
    """Return the name of a graph's external-data file."""
    return f"{graph_name}.onnx.data"


def export_graph(module: nn.Module, graph: GraphSpec, folder: Path) -> Path:
    """Export `module` as `folder/<graph>.onnx`.

    Returns:
        The path of the graph.

    Raises:
        InputError: torch cannot export the module, or the result has another operator or breaks the contract.
    """
    path = folder / f"{graph.name}.onnx"
    program = _trace(module, graph)
    weights = list(program.model.graph.initializers.values())
    program.optimize()  # constants folded, dead nodes and outputs dropped
    model = program.model
    _fold_tables(model)
    _name_after_modules(model.graph)
    _drop_metadata(model)
    check_operators(model.graph, graph.name)
    ir.save(model, path, external_data=data_name(graph.name), size_threshold_bytes=EXTERNAL_FROM_BYTES)
    _release_weights((*weights, *model.graph.initializers.values()))
    check_contract(path, graph)
    return path


def _trace(module: nn.Module, graph: GraphSpec) -> torch.onnx.ONNXProgram:
    samples = tuple(
        torch.zeros([_sample_size(size) for size in tensor.shape], dtype=getattr(torch, tensor.dtype))
        for tensor in graph.inputs
    )
    dynamic = tuple(
        {axis: size for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in graph.inputs
    )
    with warnings.catch_warnings(), torch.no_grad():
        # Two inputs share a named axis on purpose; torch warns that the second name is redundant.
        warnings.filterwarnings("ignore", message="# The axis name: .* will not be used")
        # Raised inside torch's own tracing code on each export, whatever is exported.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            program = torch.onnx.export(
                module,
                samples,
                dynamo=True,
                opset_version=OPSET,
                input_names=graph.input_names,
                output_names=graph.output_names,
                dynamic_shapes=dynamic,
                custom_translation_table=translations(),
                verbose=False,
                optimize=False,
            )
        except torch.onnx.OnnxExporterError as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"torch {torch.__version__} cannot export {graph.name}: {first}") from error
    if program is None:
        raise InputError(
            f"torch {torch.__version__} returned no program for {graph.name}; needs torch >= 2.7"
        )
    return program


def _fold_tables(model: ir.Model) -> None:
    """Fold what the exporter's limits leave: relative positions that SAM ViT-H would look up at run time."""
    fold_constants(model, input_size_limit=_TABLE_SIZE, output_size_limit=_FOLDED_SIZE)
    RemoveUnusedNodesPass()(model)


def _release_weights(weights: Iterable[ir.Value]) -> None:
    """Drop weights: onnxscript's rewrite rules are module constants that keep the last graph they saw."""
    for value in weights:
        value.const_value = None


def _sample_size(size: int | str) -> int:
    return _SAMPLE_SIZES[size] if isinstance(size, str) else size


def check_operators(graph: ir.Graph, name: str) -> None:
    """Refuse a graph with an operator that is not on the list.

    Raises:
        InputError: names the first such operator and its node.
    """
    unsupported = [node for node in graph if node.domain or node.op_type not in READ_BY_TENSORRT]
    if unsupported:
        kinds = Counter(node.op_type for node in unsupported).items()
        raise InputError(
            f"{name}: the exporter wrote {', '.join(f'{count} {kind}' for kind, count in kinds)}, first at "
            f"{unsupported[0].name}: not among the operators that TensorRT is known to read; export with the "
            "pinned packages (constraints.txt)"
        )


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - the operator's signature
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002 - the operator's signature
) -> Any:
    """Build unmasked attention [b, heads, t, w]: Q scaled, one product, softmax, one product."""
    if attn_mask is not None or is_causal or enable_gqa or dropout_p:
        raise NotImplementedError("attention with a mask: use masked_attention in the wrapper")
    factor = int(query.shape[3]) ** -0.5 if scale is None else scale
    if factor != 1.0:
        query = op.Mul(query, op.Constant(value=_tensor(np.float32(factor))))
    weights = op.Softmax(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), axis=-1)
    return op.MatMul(weights, value)


def gelu(self: Any, approximate: str = "none") -> Any:
    """Build x/2 · (1 + erf(x/√2)): ONNX Runtime fuses this order, and not torch's, x · (1/2 · (1 + erf)).

    The half is multiplied first, so that no intermediate result is larger than x in float16. The
    approximation of EfficientViT is x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    """
    if approximate == "tanh":
        return _gelu_by_tanh(self)
    if approximate != "none":
        raise NotImplementedError(f"GELU approximated by {approximate!r}: no checkpoint that is read has it")
    half, one, root = (op.Constant(value=_tensor(np.float32(value))) for value in (0.5, 1.0, math.sqrt(2.0)))
    return op.Mul(op.Mul(self, half), op.Add(op.Erf(op.Div(self, root)), one))


def _gelu_by_tanh(states: Any) -> Any:
    factors = (0.5, 1.0, math.sqrt(2.0 / math.pi), 0.044715)
    half, one, root, share = (op.Constant(value=_tensor(np.float32(value))) for value in factors)
    cube = op.Mul(op.Mul(states, op.Mul(states, states)), share)
    inner = op.Mul(op.Add(states, cube), root)
    return op.Mul(op.Mul(states, half), op.Add(op.Tanh(inner), one))


def group_norm(
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-05,
    cudnn_enabled: bool = True,  # noqa: FBT001, FBT002, ARG001 - the operator's signature
) -> Any:
    """Build a group norm of [b, c, ...]: an instance norm over groups, then scale and shift per channel."""
    channels, *places = (int(size) for size in input.shape[1:])
    values = channels // num_groups * math.prod(places)
    normed = (_instance_norm if values <= LARGE_GROUP else _norm_in_rows)(input, num_groups, eps)
    normed = op.Reshape(normed, _ints(-1, channels, *places))
    spread = _ints(1, channels, *[1] * len(places))
    return op.Add(op.Mul(normed, op.Reshape(weight, spread)), op.Reshape(bias, spread))


def _instance_norm(states: Any, groups: int, eps: float) -> Any:
    one, zero = (op.Constant(value=_tensor(np.full(groups, v, np.float32))) for v in (1.0, 0.0))
    return op.InstanceNormalization(op.Reshape(states, _ints(0, groups, -1)), one, zero, epsilon=eps)


def _norm_in_rows(states: Any, groups: int, eps: float) -> Any:
    """Build the same with its sums along the rows and then over them: a mean of means of equal rows."""
    grouped = op.Reshape(states, _ints(0, groups, -1, int(states.shape[-1])))
    centred = op.Sub(grouped, _mean_in_rows(grouped))
    variance = _mean_in_rows(op.Mul(centred, centred))
    return op.Div(centred, op.Sqrt(op.Add(variance, op.Constant(value=_tensor(np.float32(eps))))))


def _mean_in_rows(grouped: Any) -> Any:
    return op.ReduceMean(op.ReduceMean(grouped, _ints(3), keepdims=1), _ints(2), keepdims=1)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the table for `torch.onnx.export(custom_translation_table=...)`.

    Parameters have the names of the operators' own: torch 2.10 ignores a translation with others.
    """
    return {
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.gelu.default: gelu,
        torch.ops.aten.group_norm.default: group_norm,
    }


def _ints(*values: int) -> Any:
    return op.Constant(value=_tensor(np.array(values, np.int64)))


def _tensor(value: Any) -> ir.TensorProtocol:
    return ir.tensor(np.asarray(value))


def _name_after_modules(graph: ir.Graph) -> None:
    outputs, taken = {id(value) for value in graph.outputs}, Counter[str]()
    for node in graph:
        module = _module_of(node)
        node.name = _unique(f"{module}/{node.op_type}", taken)
        for index, value in enumerate(node.outputs):
            if id(value) not in outputs:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}:{index}"
        for source in node.inputs:
            if source is not None and _is_invented_weight(source):
                source.name = _unique(f"{module}.weight.T", taken)


def _module_of(node: ir.Node) -> str:
    scopes = literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return str(scopes[-2]) if len(scopes) > 1 and scopes[-2] else "graph"


def _is_invented_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    invented = value.is_initializer() and _INVENTED.fullmatch(value.name or "") is not None
    return invented and tensor is not None and tensor.size >= _NAMED_WEIGHT_SIZE


def _unique(name: str, taken: Counter[str]) -> str:
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}_{taken[name] - 1}"


def _drop_metadata(model: ir.Model) -> None:
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    graph.doc_string = model.doc_string = None
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
    values = chain(graph.inputs, graph.initializers.values(), *(node.outputs for node in graph))
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
