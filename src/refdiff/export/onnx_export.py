"""The one place that calls `torch.onnx.export`.

In: a wrapper module and its graph contract. Out: `<graph>.onnx`, its weights in `<graph>.onnx.data`, checked
against the contract. The same input gives the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from refdiff.contracts.graphs import GraphSpec
from refdiff.errors import InputError
from refdiff.export.clean_up import clean_up
from refdiff.export.contract_check import check_contract
from refdiff.export.operators import check_operators
from refdiff.export.translations import OPSET, translations

if TYPE_CHECKING:
    from torch import nn

EXTERNAL_FROM_BYTES = 1024
"""Smaller tensors stay inside the ONNX file: shapes and scalars that a parser must see."""

_TABLE_SIZE, _FOLDED_SIZE = 1 << 16, 1 << 20
"""Most values of an operand and of a result that are folded; SAM ViT-H needs 10,160 and 327,680."""

_SAMPLE_SIZES = {"b": 2, "c": 3, "p": 7, "t": 10, "n": 5, "k": 4}
"""Sizes of the named dimensions while tracing: all different, none 1 (a 1 would become static), t = c + p."""


def data_name(graph_name: str) -> str:
    """The external-data file of a graph."""
    return f"{graph_name}.onnx.data"


def export_graph(module: nn.Module, graph: GraphSpec, folder: Path) -> Path:
    """Export `module` as `folder/<graph>.onnx`.

    Raises:
        InputError: torch cannot export the module, or what came out breaks the contract.
    """
    path = folder / f"{graph.name}.onnx"
    program = _trace(module, graph)
    weights = list(program.model.graph.initializers.values())
    program.optimize()  # constants folded, dead nodes and outputs dropped
    model = program.model
    _fold_tables(model)
    clean_up(model)
    check_operators(model.graph, graph.name)
    ir.save(model, path, external_data=data_name(graph.name), size_threshold_bytes=EXTERNAL_FROM_BYTES)
    _let_go((*weights, *model.graph.initializers.values()))
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
    """Fold what the exporter leaves by its limits: relative positions that SAM ViT-H looks up at run time."""
    fold_constants(model, input_size_limit=_TABLE_SIZE, output_size_limit=_FOLDED_SIZE)
    RemoveUnusedNodesPass()(model)


def _let_go(weights: Iterable[ir.Value]) -> None:
    """Rewrite rules of onnxscript are module constants that keep the last graph they saw, weights and all."""
    for value in weights:
        value.const_value = None


def _sample_size(size: int | str) -> int:
    return _SAMPLE_SIZES[size] if isinstance(size, str) else size
