"""`lint`: find the operators of a bundle that TensorRT's parser refuses, and those that are risky.

In: a bundle. Out: the parser's refusals, and risks by layer, each with its reason. Nothing is built. Risks
are read from the parsed network, not from the ONNX file: the network is what will be built, and a device
needs no onnx package for it. A layer keeps its node's name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.progress import Progress, silent
from refdiff.engines.build import check_attention_op, check_size, chosen_graphs
from refdiff.engines.trt.attention_blocks import AttentionBlock, attention_blocks
from refdiff.engines.trt.device import find_device
from refdiff.engines.trt.flavour import Flavour, choose_flavour, member_name
from refdiff.engines.trt.monitor import make_log
from refdiff.engines.trt.options import BuildOptions, check_supported
from refdiff.engines.trt.parsing import Refusal, layer_kind, parse


@dataclass(frozen=True, kw_only=True)
class LintFinding:
    """One risk in one graph."""

    rule: str
    layer: str
    """Name of the layer, or of the input or output."""
    because: str


@dataclass(frozen=True, kw_only=True)
class LintedGraph:
    """Result of parsing one graph."""

    graph: str
    precision: str
    layers: int
    """Number of layers of the network, as far as it was parsed."""
    refusals: tuple[Refusal, ...]
    findings: tuple[LintFinding, ...]
    attention: tuple[AttentionBlock, ...]
    """Empty, like `findings`, if the graph was refused: half a network shows nothing."""


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """Result of `lint`."""

    bundle: Path
    flavour: str
    version: str
    reason: str
    """Reason for choosing this flavour."""
    graphs: tuple[LintedGraph, ...]

    @property
    def passed(self) -> bool:
        """True if the parser accepts every graph; risks are reported and do not fail."""
        return not any(graph.refusals for graph in self.graphs)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {**dataclasses.asdict(self), "bundle": str(self.bundle), "passed": self.passed}


def lint(
    bundle: Path | str,
    *,
    flavour: str = "auto",
    graphs: Sequence[str] = (),
    size: int | None = None,
    attention_op: bool = False,
    expect: str | None = None,
    progress: Progress | None = None,
) -> LintReport:
    """Parse graphs with TensorRT's own parser; TensorRT-RTX needs no GPU for it.

    Args:
        bundle: its folder, or "mini".
        flavour: "tensorrt", "tensorrt-rtx", or "auto".
        graphs: names; none means all.
        size: as in `build`.
        attention_op: parse what a build with `BuildOptions(attention_op=True)` would.
        expect: hash of the manifest that the bundle must have; None: any bundle.
        progress: receives one line for each graph.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: an unknown name, another size than the bundle's, or an `attention_op` that this TensorRT
            or the bundle's precision does not have.
        MissingDependencyError: no TensorRT is installed.
        EngineError: TensorRT cannot start.
    """
    tell, opened = progress or silent, find_bundle(bundle, expect=expect)
    names = chosen_graphs(opened, graphs)
    check_size(opened, size)
    trt, reason = choose_flavour(flavour, has_device=find_device() is not None)
    if attention_op:
        check_attention_op(opened)
        check_supported(BuildOptions(attention_op=True), trt)
    linted = []
    for name in names:
        tell(f"{name}: parsing")
        parsed = parse(trt, opened.graph_path(name), make_log(trt), attention_op=attention_op)
        linted.append(
            LintedGraph(
                graph=name,
                precision=opened.manifest.graphs[name].precision,
                layers=parsed.network.num_layers,
                refusals=parsed.refusals,
                findings=() if parsed.refusals else find_risks(trt, parsed.network),
                attention=() if parsed.refusals else attention_blocks(parsed.network),
            )
        )
    return LintReport(
        bundle=opened.path, flavour=trt.name, version=trt.version, reason=reason, graphs=tuple(linted)
    )


RISKS: Mapping[str, str] = {
    "data-dependent shape": "its output's size depends on values, so no size is fixed and memory is a guess; "
    "TensorRT-RTX refuses such nodes (segment-anything#425, nanosam#12)",
    "control flow": "loops and branches end fusion on both sides; the graphs are exported without any",
    "plugin": "a plugin is a separate library, and the plan loads only where that is installed",
    "half-precision softmax": "exponentials and their sum overflow or lose digits in half precision; keep "
    "softmax in fp32 (segment-anything#696, TensorRT#2691)",
    "half-precision norm": "most of the UNet's error in half precision comes from its GroupNorms; keep them "
    "in fp32 (TensorRT#2691)",
    "attention is an output": "a softmax that leaves the graph, or a product of one, cannot be fused, and "
    "fused neighbours change numbers (TensorRT#3258, #2232, #3452)",
    "cubic resize": "bicubic resizing differs between back-ends; do it outside the graph "
    "(TensorRT#3560, pytorch#177138)",
    "dynamic image size": "plans with dynamic height or width gave NaN or black corners; build one size "
    "each (TensorRT#2943, #4017)",
}
"""Rule -> reason, with its source."""

_LAYER_RULES: Mapping[str, str] = {
    "NON_ZERO": "data-dependent shape",
    "NMS": "data-dependent shape",
    "LOOP_OUTPUT": "control flow",
    "TRIP_LIMIT": "control flow",
    "RECURRENCE": "control flow",
    "CONDITION": "control flow",
    "CONDITIONAL_OUTPUT": "control flow",
    "PLUGIN": "plugin",
    "PLUGIN_V2": "plugin",
    "PLUGIN_V3": "plugin",
}
"""Kind of layer that is always a risk -> rule."""

_IMAGE_RANK = 4
_HALVES = ("HALF", "BF16")


def find_risks(flavour: Flavour, network: Any) -> tuple[LintFinding, ...]:
    """Return all risks of a network, in the order of its layers.

    Args:
        flavour: the TensorRT it was parsed with.
        network: one that was parsed without refusals.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = [risk for layer in layers for risk in _layer_risks(flavour, layer)]
    return (*_input_risks(network), *found, *_output_risks(network, layers))


def _layer_risks(flavour: Flavour, layer: Any) -> Iterator[LintFinding]:
    kind = layer_kind(layer)
    if kind in _LAYER_RULES:
        yield _finding(_LAYER_RULES[kind], str(layer.name))
    if kind == "SOFTMAX" and _is_half(layer.get_output(0)):
        yield _finding("half-precision softmax", str(layer.name))
    if kind == "NORMALIZATION" and _is_half(layer.get_output(0)) and _is_group_norm(layer):
        yield _finding("half-precision norm", str(layer.name))
    if kind == "RESIZE" and _as_subclass(flavour, layer, "IResizeLayer", _is_cubic):
        yield _finding("cubic resize", str(layer.name))


def _input_risks(network: Any) -> Iterator[LintFinding]:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if len(tensor.shape) == _IMAGE_RANK and -1 in tuple(tensor.shape)[2:]:
            yield _finding("dynamic image size", str(tensor.name))


def _output_risks(network: Any, layers: list[Any]) -> Iterator[LintFinding]:
    """Yield outputs that are a softmax, with nothing but casts, reshapes or means in between."""
    made_by = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    for index in range(network.num_outputs):
        tensor = network.get_output(index)
        layer = made_by.get(tensor.name)
        while layer is not None and layer_kind(layer) in _CARRIERS:
            source = layer.get_input(0)
            layer = None if source is None else made_by.get(source.name)
        if layer is not None and layer_kind(layer) == "SOFTMAX":
            yield _finding("attention is an output", str(tensor.name))


_CARRIERS = frozenset({"CAST", "IDENTITY", "SHUFFLE", "REDUCE", "SLICE", "SQUEEZE", "UNSQUEEZE"})
"""Layers that pass on their input moved, cast or averaged."""


def _is_group_norm(layer: Any) -> bool:
    """Return whether it is a GroupNorm or InstanceNorm, which has one scale for each channel.

    A LayerNorm, whose scale follows the last axis, sums in float32 whatever its tensors are (`stash_type`).
    """
    scale = layer.get_input(1)
    return scale is not None and tuple(scale.shape)[-1] == 1


def _is_cubic(layer: Any) -> bool:
    return member_name(layer.resize_mode) == "CUBIC"


def _as_subclass(flavour: Flavour, layer: Any, name: str, ask: Callable[[Any], bool]) -> bool:
    """Query a layer as its own class; TensorRT returns the base class, which hides its properties."""
    own = getattr(flavour.module, name, None)
    if own is not None and type(layer) is not own:
        layer.__class__ = own
    return ask(layer)


def _finding(rule: str, layer: str) -> LintFinding:
    return LintFinding(rule=rule, layer=layer, because=RISKS[rule])


def _is_half(tensor: Any) -> bool:
    return member_name(tensor.dtype) in _HALVES
