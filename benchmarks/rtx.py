"""Building an ONNX graph with TensorRT-RTX, which needs no GPU, and what its log says of the memory."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

VERSION = trt.__version__

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")


class _Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Keep everything; errors apart."""
        self.lines.append(message)
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)


def build(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Parse and build one graph, strongly typed, for one set of input shapes.

    Returns:
        Whether parser and builder took it, seconds, the plan's and the activations' bytes, and the errors.
    """
    log, started = _Log(), time.perf_counter()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parsed = trt.OnnxParser(network, log).parse_from_file(str(path))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *[tuple(shapes[tensor.name])] * 3)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config) if parsed else None
    found = [int(match[1]) for line in log.lines if (match := _ACTIVATIONS.search(line))]
    return {
        "parsed": bool(parsed),
        "built": plan is not None,
        "seconds": round(time.perf_counter() - started, 1),
        "plan_bytes": None if plan is None else plan.nbytes,
        "activation_bytes": found[-1] if found else None,
        "errors": log.errors[:3],
    }
