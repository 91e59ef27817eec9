"""Measure how near the tensors of a graph come to the limits of half precision, on recorded feeds.

In: an fp32 graph and feeds. Out: a `DynamicRange` for every float tensor (inputs, weights and the results of
all nodes) in the graph's order. One tensor is in memory at a time, plus what `probe` holds.

Small values are judged together: half precision keeps the large values of a tensor, and what the small ones
lose matters as a share of the whole (`lost`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from refdiff.contracts.recipe import Half
from refdiff.contracts.session import Array
from refdiff.engines.intermediate_tensors import probe
from refdiff.passes.graph_files import load_graph

WEIGHT, INPUT = "weight", "input"
"""Stand in for the operator where no node makes the tensor."""

CHUNK = 1 << 22
"""Values that are counted together."""


@dataclass(frozen=True)
class TypeRange:
    """The range of a half-precision type."""

    largest: float
    smallest_normal: float
    """Smaller magnitudes lose digits."""
    smallest: float
    """Magnitudes up to half of this become zero."""
    rounding: float
    """Largest relative rounding error of a normal value."""


TYPE_RANGES: dict[Half, TypeRange] = {
    "fp16": TypeRange(65504.0, 2.0**-14, 2.0**-24, 2.0**-11),
    "bf16": TypeRange((2.0 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133, 2.0**-8),
}


@dataclass(frozen=True, kw_only=True)
class DynamicRange:
    """The range of one tensor's values in fp32, over all feeds."""

    tensor: str
    node: str
    """The node that makes it; "" for an input or a weight."""
    operator: str
    """Operator of that node, or `INPUT`, or `WEIGHT`."""
    largest: float
    """Largest finite magnitude."""
    subnormal: float
    """Share of the non-zero values below the half-precision type's smallest normal magnitude."""
    flushed: float
    """Share of the non-zero values that become zero."""
    lost: float
    """Share of the whole tensor that rounding takes from subnormal values (root mean squares); worst feed."""
    nan: int
    inf: int
    size: int
    """Number of values measured."""

    @property
    def is_finite(self) -> bool:
        """True if the tensor holds neither NaN nor infinity in fp32."""
        return not (self.nan or self.inf)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "tensor": self.tensor,
            "node": self.node,
            "operator": self.operator,
            "largest_magnitude": self.largest,
            "subnormal_share": self.subnormal,
            "flushed_share": self.flushed,
            "lost_share": self.lost,
            "nan": self.nan,
            "inf": self.inf,
            "size": self.size,
        }


class RangeCounter:
    """Accumulates the dynamic range of one tensor, run by run.

    Args:
        limits: range of the half-precision type.
    """

    def __init__(self, limits: TypeRange) -> None:
        self._limits = limits
        self._largest = 0.0
        self._lost = 0.0
        self._nonzero = self._subnormal = self._flushed = 0
        self._nan = self._inf = self._size = 0

    def add(self, values: Array, *, chunk: int = CHUNK) -> None:
        """Count one run's values, floats of any shape, so many at a time."""
        lost, whole, flat = 0.0, 0.0, values.reshape(-1)
        for start in range(0, flat.size, chunk):
            magnitudes = self._finite_magnitudes(flat[start : start + chunk])
            lost += self._count(magnitudes)
            whole += float(np.square(magnitudes, dtype=np.float64).sum())
        self._size += flat.size
        self._lost = max(self._lost, math.sqrt(lost / whole) if whole else 0.0)

    def result(self, tensor: str, node: str, operator: str) -> DynamicRange:
        """Return the range of all values counted so far."""
        nonzero = max(self._nonzero, 1)
        return DynamicRange(
            tensor=tensor,
            node=node,
            operator=operator,
            largest=self._largest,
            subnormal=self._subnormal / nonzero,
            flushed=self._flushed / nonzero,
            lost=self._lost,
            nan=self._nan,
            inf=self._inf,
            size=self._size,
        )

    def _finite_magnitudes(self, values: Array) -> Array:
        """Return magnitudes; NaN and infinities are counted and left out."""
        magnitudes: Array = np.abs(values)
        finite = np.isfinite(magnitudes)
        if finite.all():
            return magnitudes
        self._nan += int(np.isnan(magnitudes).sum())
        self._inf += int(np.isinf(magnitudes).sum())
        return magnitudes[finite]

    def _count(self, magnitudes: Array) -> float:
        """Count finite magnitudes; return the sum of squares of what rounding takes from subnormal ones."""
        limits = self._limits
        self._largest = max(self._largest, float(magnitudes.max(initial=0.0)))
        self._nonzero += int(np.count_nonzero(magnitudes))
        small = magnitudes[(magnitudes < limits.smallest_normal) & (magnitudes > 0)].astype(np.float64)
        kept = np.rint(small / limits.smallest) * limits.smallest
        self._subnormal += small.size
        self._flushed += int((kept == 0).sum())
        return float(np.square(small - kept).sum())


def measure_dynamic_range(
    path: Path, feeds: Sequence[Mapping[str, Array]], half: Half
) -> tuple[DynamicRange, ...]:
    """Measure every float tensor of a graph: inputs, weights, and the results of its nodes in their order.

    Args:
        path: an fp32 graph.
        feeds: one mapping per run.
        half: the type whose limits count.

    Raises:
        EngineError: the graph cannot be run.
    """
    graph, limits = load_graph(path).graph, TYPE_RANGES[half]
    made = {str(value.name): node for node in graph for value in node.outputs if is_single(value)}
    counters = {name: RangeCounter(limits) for name in made}
    for _, name, values in probe(path, feeds, tuple(made)):
        counters[name].add(values)
    return (
        *_measure_inputs(graph, feeds, limits),
        *_measure_weights(graph, limits),
        *(counters[name].result(name, node.name or "", node.op_type) for name, node in made.items()),
    )


def is_single(value: ir.Value | None) -> bool:
    """Return whether a tensor is float32, and so a candidate for half precision."""
    return value is not None and value.dtype == ir.DataType.FLOAT and bool(value.name)


def _measure_inputs(
    graph: ir.Graph, feeds: Sequence[Mapping[str, Array]], limits: TypeRange
) -> list[DynamicRange]:
    found = []
    for value in graph.inputs:
        if is_single(value) and value.name not in graph.initializers:
            counter = RangeCounter(limits)
            for feed in feeds:
                counter.add(feed[str(value.name)])
            found.append(counter.result(str(value.name), "", INPUT))
    return found


def _measure_weights(graph: ir.Graph, limits: TypeRange) -> list[DynamicRange]:
    """Measure the weights, one in memory at a time: they are mapped from their file."""
    found = []
    for name, value in graph.initializers.items():
        if is_single(value) and value.const_value is not None:
            counter = RangeCounter(limits)
            counter.add(value.const_value.numpy())
            found.append(counter.result(name, "", WEIGHT))
    return found
