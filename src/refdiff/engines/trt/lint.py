"""Operators that parse and are risky all the same, each with the reason.

In: a parsed network. Out: findings, by layer. The network is looked at, not the ONNX file: it is what will be
built, and a device needs no onnx package for it. A layer keeps its node's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from refdiff.engines.trt.flavour import Flavour


@dataclass(frozen=True, kw_only=True)
class LintFinding:
    """One risk in one graph."""

    rule: str
    layer: str
    """Name of the layer, or of the input or output."""
    because: str


RISKS: Mapping[str, str] = {
    "data-dependent shape": "its output's size depends on values, so no size is fixed and memory is a guess; "
    "TensorRT-RTX refuses such nodes (segment-anything#425, nanosam#12)",
    "control flow": "loops and branches end fusion on both sides; the graphs are exported without any",
    "plugin": "a plugin is a library of its own, and the plan loads only where that is",
    "half-precision softmax": "exponentials and their sum overflow or lose digits in half precision; keep "
    "softmax an fp32 island (segment-anything#696, TensorRT#2691)",
    "half-precision norm": "most of the UNet's error in half precision comes from its GroupNorms; keep them "
    "fp32 islands (TensorRT#2691)",
    "attention is an output": "a softmax that leaves the graph, or a product of one, cannot be fused, and "
    "fused neighbours change numbers (TensorRT#3258, #2232, #3452)",
    "cubic resize": "bicubic resizing differs between back-ends; do it outside the graph "
    "(TensorRT#3560, pytorch#177138)",
    "dynamic picture size": "plans with dynamic height or width gave NaN or black corners; build one size "
    "each (TensorRT#2943, #4017)",
}
"""Rule -> why it is one, with its source."""

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
"""Kind of layer that is a risk wherever it stands."""

_PICTURE_RANK = 4
_HALVES = ("HALF", "BF16")


def findings(flavour: Flavour, network: Any) -> tuple[LintFinding, ...]:
    """All risks of a network, in the order of its layers.

    Args:
        flavour: the TensorRT it was parsed with.
        network: a whole one; what the parser refused is told by `parsing`.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = [finding for layer in layers for finding in _of_layer(flavour, layer)]
    return (*_of_inputs(network), *found, *_of_outputs(network, layers))


def _of_layer(flavour: Flavour, layer: Any) -> Iterator[LintFinding]:
    kind = layer_kind(layer)
    if kind in _LAYER_RULES:
        yield _finding(_LAYER_RULES[kind], str(layer.name))
    if kind == "SOFTMAX" and _is_half(layer.get_output(0)):
        yield _finding("half-precision softmax", str(layer.name))
    if kind == "NORMALIZATION" and _is_half(layer.get_output(0)) and _over_a_group(layer):
        yield _finding("half-precision norm", str(layer.name))
    if kind == "RESIZE" and _seen_as(flavour, layer, "IResizeLayer", _is_cubic):
        yield _finding("cubic resize", str(layer.name))


def _of_inputs(network: Any) -> Iterator[LintFinding]:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if len(tensor.shape) == _PICTURE_RANK and -1 in tuple(tensor.shape)[2:]:
            yield _finding("dynamic picture size", str(tensor.name))


def _of_outputs(network: Any, layers: list[Any]) -> Iterator[LintFinding]:
    """Outputs that are a softmax, whatever casts, reshapes or scales stand between."""
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
"""Layers that hand on what they were given, moved, typed anew or averaged."""


def _over_a_group(layer: Any) -> bool:
    """Whether it is a GroupNorm or InstanceNorm, whose scale is one for each channel.

    A LayerNorm, whose scale follows the last axis, sums in float32 whatever its tensors are (`stash_type`).
    """
    scale = layer.get_input(1)
    return scale is not None and tuple(scale.shape)[-1] == 1


def _is_cubic(layer: Any) -> bool:
    return str(getattr(layer.resize_mode, "name", layer.resize_mode)) == "CUBIC"


def _seen_as(flavour: Flavour, layer: Any, name: str, ask: Callable[[Any], bool]) -> bool:
    """Ask a layer as its own class; TensorRT hands out the base class, which hides what the class has."""
    own = getattr(flavour.module, name, None)
    if own is not None and type(layer) is not own:
        layer.__class__ = own
    return ask(layer)


def _finding(rule: str, layer: str) -> LintFinding:
    return LintFinding(rule=rule, layer=layer, because=RISKS[rule])


def layer_kind(layer: Any) -> str:
    """What a layer does, by TensorRT's name for it."""
    return str(getattr(layer.type, "name", layer.type))


def _is_half(tensor: Any) -> bool:
    return type_name(tensor.dtype) in _HALVES


def type_name(dtype: Any) -> str:
    """TensorRT's name for a type."""
    return str(getattr(dtype, "name", dtype))
