"""Multiply-adds (MACs) of a graph, those of its matrix products and convolutions, and this machine's peak.

Everything else (norms, activations, additions) is excluded, as in METHOD §4.8's table. A converted graph has
no inner shapes; they are inferred from the sizes of its inputs.

The peak is that of a float32 matrix product in ONNX Runtime, measured and not looked up. Its graph is in
`matmul.onnx`, y = MatMul(a, b) with 1024×1024 matrices: a device's environment has no package that writes
ONNX.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.optional import require_export
from refdiff.engines.factory import import_ort
from refdiff.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import onnx_ir as ir


PURPOSE = "counting multiply-adds"

Sizes = Mapping[str, int]
"""Named dimension -> size, {"b": 1} for instance."""


class MacCounter:
    """Counts the multiply-adds of a bundle's graphs, once for each graph and shape.

    `problem` says why a count is unknown; None while all are known.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._contract = graph_contract(bundle.spec)
        self._known: dict[tuple[str, tuple[tuple[str, int], ...]], int | None] = {}
        self.problem: str | None = None

    def __call__(self, graph: str, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Return the multiply-adds of one run.

        Args:
            graph: its name.
            shapes: feed -> shape.

        Returns:
            None if they are unknown.
        """
        sizes = {
            dimension: size
            for tensor in self._contract[graph].inputs
            for dimension, size in zip(tensor.shape, shapes[tensor.name], strict=True)
            if isinstance(dimension, str)
        }
        key = (graph, tuple(sizes.items()))
        if key not in self._known:
            try:
                self._known[key] = count_macs(self._bundle.graph_path(graph), sizes)
            except (InputError, MissingDependencyError) as error:
                self._known[key], self.problem = None, str(error)
        return self._known[key]


def count_macs(path: Path, sizes: Sizes) -> int:
    """Count the multiply-adds of one run of an exported graph.

    Raises:
        InputError: a shape the count needs is not in the file, and does not follow from the sizes.
        MissingDependencyError: onnx_ir is not installed.
    """
    with require_export(PURPOSE):
        from refdiff.passes.graph_files import load_graph
    model = load_graph(path)
    if any(value.shape is None for node in model.graph for value in node.outputs):
        _infer_shapes(model, sizes)
    return sum(_node_macs(node, sizes) for node in model.graph)


def _infer_shapes(model: ir.Model, sizes: Sizes) -> None:
    """Infer with numbers in place of the named dimensions, so that computed shapes fold to numbers."""
    with require_export(PURPOSE):
        import onnx_ir as ir
        from onnx_ir.passes.common import ShapeInferencePass
        from onnxscript.optimizer import fold_constants
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                [size if isinstance(size, int) else sizes.get(str(size.value), size) for size in value.shape]
            )
    fold_constants(model, onnx_shape_inference=True)
    ShapeInferencePass(data_prop=True)(model)


def _node_macs(node: ir.Node, sizes: Sizes) -> int:
    if node.op_type in ("MatMul", "Gemm"):
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1
        (summed,) = _shape(node, node.inputs[0], sizes, slice(0, 1) if transposed else slice(-1, None))
        return math.prod(_shape(node, node.outputs[0], sizes)) * summed
    if node.op_type in ("Conv", "ConvTranspose"):
        kernel = _shape(
            node, node.inputs[1], sizes
        )  # [out, in / groups, ...]; transposed [in, out / groups, ...]
        positions = node.outputs[0] if node.op_type == "Conv" else node.inputs[0]
        return math.prod(_shape(node, positions, sizes)) * math.prod(kernel[1:])
    if node.op_type == "Einsum":
        # One product of two tensors: the sizes of all its letters.
        terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
        letters: dict[str, int] = {}
        for term, value in zip(terms, node.inputs, strict=True):
            letters |= dict(zip(term, _shape(node, value, sizes), strict=True))
        return math.prod(letters.values())
    return 0


def _shape(node: ir.Node, value: ir.Value | None, sizes: Sizes, at: slice = slice(None)) -> Sequence[int]:
    """Return the sizes of a tensor's dimensions `at`; the others need not be known."""
    if value is None or value.shape is None:
        raise InputError(f"{node.name}: a shape is missing; export the graph again")
    return [
        size if isinstance(size, int) else _size(node, str(size.value), sizes) for size in value.shape[at]
    ]


def _size(node: ir.Node, name: str, sizes: Sizes) -> int:
    """Return the size of a named dimension, or of a sum of products of numbers and names."""
    total = 0
    for term in name.split("+"):
        factors = [
            int(part) if part.isdigit() else sizes.get(part) for part in map(str.strip, term.split("*"))
        ]
        if None in factors:
            known = ", ".join(sizes) or "none"
            raise InputError(f"{node.name}: got no size of dimension {name}, have: {known}")
        total += math.prod(factor for factor in factors if factor is not None)
    return total


SIDE = 1024
"""Side of the square matrices: 4 MiB each, with far more arithmetic than reading."""

_RUNS = 5
"""Runs of the product before a round."""

_PROVIDER = {
    "ort-cpu": "ort-cpu",
    "ort-rounded": "ort-cpu",
    "ort-cuda": "ort-cuda",
    "ort-tensorrt": "ort-cuda",
    "ort-rtx": "ort-cuda",
    "tensorrt": "ort-cuda",
    "tensorrt-rtx": "ort-cuda",
}
"""Back-end -> the back-end of ONNX Runtime that runs the product on the same processor."""


@dataclass(frozen=True, kw_only=True)
class PeakThroughput:
    """The machine's best, to which graphs are compared."""

    gflops: float | None
    """GFLOP/s of the best run; None: unknown."""
    rounds: tuple[float, ...]
    """GFLOP/s of the median run before each round: how quiet the machine was."""
    how: str
    """Description of the measurement, or the reason why there is none."""

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]], how: str) -> PeakThroughput:
        """Summarize the GFLOP/s of the runs before each round; there may be none."""
        best = max((run for runs in rounds for run in runs), default=None)
        medians = tuple(round(statistics.median(runs), 2) for runs in rounds if runs)
        return cls(gflops=None if best is None else round(best, 2), rounds=medians, how=how)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"gflops": self.gflops, "rounds": list(self.rounds), "how": self.how}


class MatrixProduct:
    """The matrix product, ready to be timed on the processor that a back-end uses.

    Args:
        backend: one of `refdiff.engines.factory.BACKENDS`, except "auto".
        threads: as in `load`.
        clock: in seconds.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed, or has no provider for that processor.
    """

    def __init__(
        self, backend: str, threads: int | None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        where = _PROVIDER[backend]
        engine = import_ort(where)
        if engine.PROVIDERS[where][0] not in engine.ort.get_available_providers():
            raise MissingDependencyError(f"no {where} here to time a matrix product in")
        with_threads = "the back-end's choice of threads" if threads is None else f"{threads} threads"
        self.how = f"a float32 product of {SIDE}×{SIDE} in {where}, {with_threads}"
        graph = resources.files("refdiff.profiling").joinpath("matmul.onnx").read_bytes()
        options = engine.session_options(threads, spinning=True)  # a peak: nothing else needs the cores
        self._session = engine.ort.InferenceSession(graph, options, providers=[engine.PROVIDERS[where]])
        values = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
        self._feeds = {name: engine.ort.OrtValue.ortvalue_from_numpy(values) for name in ("a", "b")}
        self._clock = clock
        self._run()

    def gflops(self) -> float:
        """Return the GFLOP/s of one run; a multiply-add is two operations."""
        begun = self._clock()
        self._run()
        return 2 * SIDE**3 / (self._clock() - begun) / 1e9

    def measure_round(self) -> list[float]:
        """Return the GFLOP/s of the runs before a round."""
        return [self.gflops() for _ in range(_RUNS)]

    def _run(self) -> None:
        self._session.run_with_ort_values(["y"], self._feeds)
