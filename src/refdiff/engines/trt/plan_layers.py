"""What a plan's kernels compute, as TensorRT tells it: which of them holds which nodes of the ONNX file.

In: lines of the build log, which need no GPU, or a loaded engine, whose inspector says the same. Out:
`PlanLayer`s, and attentions with the answer whether one kernel computes each.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from refdiff.engines.trt.attention_blocks import AttentionBlock

LAYER_LINE = "LayerType: "
"""What each line of the build log has that describes a layer of the plan."""

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_LINE_NAME = re.compile(r"^Name: (.*?), LayerType: ")


@dataclass(frozen=True, kw_only=True)
class PlanLayer:
    """One kernel of a plan."""

    name: str
    nodes: frozenset[str]
    """Nodes of the ONNX file that it computes, or parts of which it computes."""


def layers_in_log(lines: Iterable[str]) -> tuple[PlanLayer, ...]:
    """The layers of a plan from its build log, of every optimisation profile; empty where it lists none.

    Args:
        lines: those with `LAYER_LINE`.
    """
    found = ((match[1], line) for line in lines if (match := _LINE_NAME.match(line)))
    return tuple(PlanLayer(name=name, nodes=frozenset(_NODE.findall(line))) for name, line in found)


def layers_of_engine(module: Any, engine: Any) -> tuple[PlanLayer, ...]:
    """The layers of a loaded engine, from its inspector; empty where the plan holds no details.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        engine: a deserialised one.
    """
    told = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    layers = json.loads(told or "{}").get("Layers", [])
    return tuple(
        PlanLayer(name=str(each.get("Name", "")), nodes=frozenset(_NODE.findall(str(each.get("Metadata")))))
        for each in layers
        if isinstance(each, dict)  # built without details, a layer is a name alone
    )


def with_kernels(blocks: Sequence[AttentionBlock], layers: Sequence[PlanLayer]) -> tuple[AttentionBlock, ...]:
    """Attentions with the answer whether the plan fused them.

    One is fused where every kernel that holds its softmax (one for each optimisation profile) holds both of
    its products as well.
    """
    return tuple(_with_kernel(block, layers) for block in blocks)


def _with_kernel(block: AttentionBlock, layers: Sequence[PlanLayer]) -> AttentionBlock:
    holding = [layer for layer in layers if block.softmax in layer.nodes]
    if not holding:
        return block
    fused = all({block.product, block.mixing} <= layer.nodes for layer in holding)
    return dataclasses.replace(block, fused=fused, kernel=holding[0].name)
