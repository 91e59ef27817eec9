"""What a plan's kernels compute, as TensorRT tells it: which of them holds which nodes of the ONNX file.

In: lines of the build log, which need no GPU, or a loaded engine, whose inspector says the same. Out:
`PlanLayer`s, and attentions with the answer whether one kernel computes each.

What TensorRT says while it works, kept as text.

In: messages from TensorRT's threads. Out: the log's text, its errors, the plan's layers, and what it says of
memory.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from refdiff.engines.trt.attention_blocks import AttentionBlock
from refdiff.engines.trt.flavour import Flavour

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


_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")
"""One line for each optimisation profile; a context takes the largest."""

_IGNORED = re.compile(r"catchCudaError.*CUDA driver version is insufficient|^Unable to determine GPU memory")
"""What every build without a driver says."""


class BuildLog(Protocol):
    """TensorRT's logger as we made it."""

    lines: list[str]
    errors: list[str]
    layers: list[str]
    """Of the plan, in TensorRT's words; `plan_layers` reads them."""


def make_log(flavour: Flavour) -> BuildLog:
    """A logger to hand to a builder and a parser: it keeps information, warnings and errors."""
    levels: Any = flavour.module.ILogger

    class Log(levels):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if LAYER_LINE in message:
                self.layers += [line for line in message.split("\n") if LAYER_LINE in line]
            if int(severity) > int(levels.INFO):
                return
            self.lines.append(f"[{severity_name(severity)}] {message}")
            if int(severity) <= int(levels.ERROR) and not _IGNORED.search(message):
                self.errors.append(message)

    return cast("BuildLog", Log())


def severity_name(severity: Any) -> str:
    """The member's name; pybind11's enumerations have one, stand-ins may not."""
    return str(getattr(severity, "name", severity))


def activation_bytes(log: BuildLog) -> int | None:
    """Device memory of one context's activations, None where the log does not say."""
    found = [int(match[1]) for line in log.lines if (match := _ACTIVATIONS.search(line))]
    return max(found, default=None)


def last_error(log: BuildLog) -> str:
    """The most telling line of a failure: the first line of the last error."""
    return log.errors[-1].strip().splitlines()[0] if log.errors else "it gives no reason"
