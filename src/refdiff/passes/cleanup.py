"""Tidying an exported graph: names a person can read, nothing that depends on the machine that exported it.

A node is named after the torch module it came from, `unet.mid_block.attentions.0.proj_in/Conv`, and its
output after the node: precision recipes, profiles and reports speak these names.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections import Counter
from itertools import chain

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter writes the modules a node came from, outermost first, then its own name."""

_INVENTED = re.compile(r"val_\d+")
"""How the exporter calls a tensor it computed itself, a transposed weight for instance."""

_NAMED_WEIGHT_SIZE = 64
"""Smaller invented constants are shapes and scalars; they keep their short names."""


def clean_up(model: ir.Model) -> None:
    """Rename the nodes and tensors of `model`, and drop stack traces, paths and other metadata."""
    _name_after_modules(model.graph)
    _drop_metadata(model)


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
