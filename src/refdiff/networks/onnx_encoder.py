"""An image encoder that was published as an ONNX file, such as NanoSAM's, as a torch module.

In: the graph. Out: a module that computes its nodes one after the other, so that it is exported, checked and
shortened like every other encoder. Only operators of convolutional networks are known; another is refused by
name. Source: the operators' definitions in ONNX, operator sets 11 to 20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import nn

from refdiff.errors import InputError

Tensors = Sequence[Any]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class _Step:
    """One node: the function to call, and the names of what it reads and writes."""

    compute: Callable[[Tensors, Settings], torch.Tensor]
    inputs: tuple[str, ...]
    output: str
    settings: Settings


class OnnxEncoder(nn.Module):
    """Normalized image [1, 3, y, x] -> embedding, as the graph computes it.

    Args:
        model: a graph with one input and one output; its weights become parameters in float32.
        file: its origin, for messages.

    Raises:
        InputError: the graph has an operator or a setting that is not known, or is no image encoder.
    """

    def __init__(self, model: ir.Model, file: Path) -> None:
        super().__init__()
        graph = model.graph
        inputs = [value for value in graph.inputs if not value.is_initializer()]
        if len(inputs) != 1 or len(graph.outputs) != 1:
            raise InputError(
                f"{file} has {len(inputs)} inputs and {len(graph.outputs)} outputs, expected one image and "
                "its embedding; use the file of an image encoder"
            )
        self._names: dict[str, str] = {}
        for value in graph.initializers.values():
            self._add_weight(str(value.name), value.const_value)
        self._input, self._output = str(inputs[0].name), str(graph.outputs[0].name)
        self._steps = tuple(step for node in graph if (step := self._read(node, file)) is not None)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image embedding."""
        values: dict[str, Any] = {name: getattr(self, own) for name, own in self._names.items()}
        values |= {self._input: image, "": None}
        for step in self._steps:
            values[step.output] = step.compute([values[name] for name in step.inputs], step.settings)
        embedding: torch.Tensor = values[self._output]
        return embedding

    def _add_weight(self, name: str, tensor: ir.TensorProtocol | None) -> None:
        own = f"weight_{len(self._names)}"
        self._names[name] = own
        values = torch.from_numpy(tensor.numpy().copy()) if tensor is not None else torch.empty(0)
        if values.is_floating_point():
            setattr(self, own, nn.Parameter(values.float(), requires_grad=False))
        else:
            self.register_buffer(own, values)

    def _read(self, node: ir.Node, file: Path) -> _Step | None:
        settings = {name: each.value for name, each in node.attributes.items()}
        if node.op_type == "Constant":
            self._add_weight(str(node.outputs[0].name), settings.get("value"))
            return None
        compute = _OPERATORS.get(node.op_type)
        if compute is None or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            known = ", ".join(sorted(_OPERATORS))
            raise InputError(
                f"{file}: node {node.name} is {node.op_type}, expected one of {known}; use NanoSAM's encoder"
            )
        if settings.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
            raise InputError(
                f"{file}: node {node.name} has auto_pad {settings['auto_pad']!r}, expected numbers; "
                "export it again"
            )
        names = tuple("" if value is None else str(value.name) for value in node.inputs)
        return _Step(compute, names, str(node.outputs[0].name), settings)


def _padded(image: Any, settings: Settings, fill: float = 0.0) -> tuple[Any, tuple[int, int]]:
    """Return the image, padded if `pads` (top, left, bottom, right) is uneven, and the even padding left."""
    top, left, bottom, right = settings.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return image, (top, left)
    return F.pad(image, (left, right, top, bottom), value=fill), (0, 0)


def _convolve(inputs: Tensors, settings: Settings) -> torch.Tensor:
    image, weight, *bias = inputs
    image, padding = _padded(image, settings)
    return F.conv2d(
        image,
        weight,
        bias[0] if bias else None,
        stride=tuple(settings.get("strides", (1, 1))),
        padding=padding,
        dilation=tuple(settings.get("dilations", (1, 1))),
        groups=settings.get("group", 1),
    )


def _convolve_transposed(inputs: Tensors, settings: Settings) -> torch.Tensor:
    image, weight, *bias = inputs
    top, left, bottom, right = settings.get("pads", (0, 0, 0, 0))
    more_y, more_x = settings.get("output_padding", (0, 0))
    return F.conv_transpose2d(
        image,
        weight,
        bias[0] if bias else None,
        stride=tuple(settings.get("strides", (1, 1))),
        padding=(top, left),
        output_padding=(more_y + top - bottom, more_x + left - right),
        dilation=tuple(settings.get("dilations", (1, 1))),
        groups=settings.get("group", 1),
    )


def _pool_maximum(inputs: Tensors, settings: Settings) -> torch.Tensor:
    image, padding = _padded(inputs[0], settings, fill=-torch.inf)
    return F.max_pool2d(
        image,
        tuple(settings["kernel_shape"]),
        stride=tuple(settings.get("strides", (1, 1))),
        padding=padding,
        dilation=tuple(settings.get("dilations", (1, 1))),
        ceil_mode=bool(settings.get("ceil_mode", 0)),
    )


def _normalize(inputs: Tensors, settings: Settings) -> torch.Tensor:
    image, weight, bias, mean, variance = inputs
    return F.batch_norm(image, mean, variance, weight, bias, eps=settings.get("epsilon", 1e-5))


def _clip(inputs: Tensors, _: Settings) -> torch.Tensor:
    image, *limits = inputs
    low, high = (*limits, None, None)[:2]
    return torch.clamp(image, min=low, max=high)


_OPERATORS: Mapping[str, Callable[[Tensors, Settings], torch.Tensor]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "BatchNormalization": _normalize,
    "Clip": _clip,
    "Concat": lambda inputs, settings: torch.cat(list(inputs), dim=settings["axis"]),
    "Conv": _convolve,
    "ConvTranspose": _convolve_transposed,
    "Div": lambda inputs, _: inputs[0] / inputs[1],
    "Erf": lambda inputs, _: torch.erf(inputs[0]),
    "GlobalAveragePool": lambda inputs, _: inputs[0].mean(dim=(2, 3), keepdim=True),
    "HardSigmoid": lambda inputs, settings: torch.clamp(
        settings.get("alpha", 0.2) * inputs[0] + settings.get("beta", 0.5), 0.0, 1.0
    ),
    "Identity": lambda inputs, _: inputs[0],
    "MaxPool": _pool_maximum,
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Relu": lambda inputs, _: torch.relu(inputs[0]),
    "Sigmoid": lambda inputs, _: torch.sigmoid(inputs[0]),
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Tanh": lambda inputs, _: torch.tanh(inputs[0]),
}
