"""Is a written graph still its torch module: run both on real inputs, compare, refuse.

error = max |onnx - torch| / (max torch - min torch), per output; the limits are `tolerances.json`, a
committed table that carries the measurement each limit was set from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from refdiff.contracts.closeness import relative_error
from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Array
from refdiff.errors import GateError, MissingDependencyError


def tolerance(precision: str, graph_name: str) -> float:
    """The committed limit on the relative error of one graph."""
    text = resources.files("refdiff.export").joinpath("tolerances.json").read_text(encoding="utf-8")
    return float(json.loads(text)[precision][graph_name]["limit"])


def run_onnx(path: Path, graph: GraphSpec, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a written graph in ONNX Runtime on the CPU.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise MissingDependencyError(
            "the export checks its graphs in ONNX Runtime, which is missing; "
            "pip install 'refdiff[export,cpu]'"
        ) from error
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    results = session.run(list(graph.output_names), dict(feeds))
    return dict(zip(graph.output_names, results, strict=True))


def check_graph(
    path: Path, graph: GraphSpec, feeds: Mapping[str, Array], expected: Mapping[str, Array], *, limit: float
) -> float:
    """Run the written graph and compare it with what torch computed.

    Returns:
        The largest relative error of its outputs.

    Raises:
        GateError: an output is farther from torch than `limit`.
    """
    results = run_onnx(path, graph, feeds)
    errors = {name: relative_error(results[name], expected[name]) for name in graph.output_names}
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= limit:
        raise GateError(
            f"{graph.name}: output {worst} of the exported graph is {errors[worst]:.2e} of its range away "
            f"from torch, allowed is {limit:.0e}; nothing was written"
        )
    return errors[worst]
