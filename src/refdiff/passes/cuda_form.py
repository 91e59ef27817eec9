"""Make the form of a graph that ONNX Runtime's CUDA provider runs fast; the bundle's graph stays as it is.

In: a graph of a bundle. Out: a serialized graph that reads the same data file, and how many parts of each
kind were rewritten. Norms become channels-last operators (`channels_last_norms`), attentions one operator
each (`multi_head_attention`). What ONNX Runtime fuses by itself is left to it: GELU, layer norms, biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from refdiff.passes.channels_last_norms import ChannelsLastNorms
from refdiff.passes.graph_files import load_graph, serialized
from refdiff.passes.multi_head_attention import MultiHeadAttention


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """Numbers of parts that were rewritten."""

    group_norms: int
    channel_norms: int
    attentions: int


def cuda_form(path: Path) -> tuple[bytes, Rewritten]:
    """Return the form of a graph, its weights left in their file, and what was rewritten.

    Raises:
        BundleError: the graph cannot be read.
    """
    model, rewritten = rewrite(load_graph(path))
    return serialized(model, path.parent), rewritten


def rewrite(model: ir.Model) -> tuple[ir.Model, Rewritten]:
    """Change a model in place into the form; return it with what was rewritten."""
    ShapeInferencePass(data_prop=True)(model)  # the heads and widths of a converted bundle are computed sizes
    norms, attentions = ChannelsLastNorms(), MultiHeadAttention()
    attentions(norms(model))
    RemoveUnusedNodesPass()(model)
    counts = Rewritten(
        group_norms=norms.group_norms, channel_norms=norms.channel_norms, attentions=attentions.count
    )
    return model, counts
