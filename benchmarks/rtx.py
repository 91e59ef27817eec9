"""Building an ONNX graph with TensorRT-RTX, which needs no GPU, and what its log says of the memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refdiff.contracts.progress import silent
from refdiff.engines.trt.building import BuildTask, build_plan
from refdiff.engines.trt.flavour import load_flavour
from refdiff.engines.trt.monitor import Watch, make_log
from refdiff.engines.trt.options import BuildOptions
from refdiff.engines.trt.shapes import Shape, ShapeRange
from refdiff.errors import EngineError

RTX = load_flavour("tensorrt-rtx")


def build(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Build one graph for one set of input shapes, and throw the plan away.

    Returns:
        Whether parser and builder took it, seconds, the plan's and the activations' bytes, and the error.
    """
    profile = {name: ShapeRange(least=shape, usual=shape, most=shape) for name, shape in shapes.items()}
    task = BuildTask(graph=path.stem, onnx=path, shapes=(profile,), options=BuildOptions())
    log, started = make_log(RTX), time.perf_counter()
    activations, error, size = None, None, None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "plan"
        try:
            activations = build_plan(RTX, task, target, log, Watch(path.stem, silent)).activation_bytes
            size = target.stat().st_size
        except EngineError as refusal:
            error = str(refusal)
    return {
        "built": error is None,
        "seconds": round(time.perf_counter() - started, 1),
        "plan_bytes": size,
        "activation_bytes": activations,
        "error": error,
    }
