"""How near the tensors of a graph come to the ends of half precision, on recorded feeds.

In: an fp32 graph, feeds, a function that looks inside (`probing.Probe`). Out: a `Headroom` for every float
tensor: inputs, weights and the results of all nodes, in the graph's order. Memory: one tensor, and what the
probe holds.

Small values are judged together: half precision keeps the large ones of a tensor beside them, and what the
small ones lose matters as a share of the whole (`lost`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from refdiff.calibration.probing import Probe
from refdiff.contracts.recipe import Half
from refdiff.contracts.session import Array

WEIGHT, INPUT = "weight", "input"
"""Stand in place of an operator where no node makes the tensor."""

_PART = 1 << 22
"""Values that are looked at together."""


@dataclass(frozen=True)
class Reach:
    """What one of the half-precision types can hold."""

    largest: float
    smallest_normal: float
    """Below it digits are lost."""
    smallest: float
    """At most half of it becomes zero."""
    rounding: float
    """Largest relative error of a value between the ends."""


REACHES: dict[Half, Reach] = {
    "fp16": Reach(65504.0, 2.0**-14, 2.0**-24, 2.0**-11),
    "bf16": Reach((2.0 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133, 2.0**-8),
}


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """One tensor, over all feeds."""

    tensor: str
    node: str
    """Who makes it; "" for an input or a weight."""
    operator: str
    """Of that node, or `INPUT`, or `WEIGHT`."""
    largest: float
    """Largest finite magnitude."""
    subnormal: float
    """Share of the non-zero values below the smallest normal magnitude."""
    flushed: float
    """Share of the non-zero values that become zero."""
    lost: float
    """What small values lose by rounding, over the whole tensor (root mean squares); on the worst feed."""
    nan: int
    inf: int
    size: int
    """Values that were looked at."""

    @property
    def is_finite(self) -> bool:
        """No NaN and no infinity, in fp32."""
        return not (self.nan or self.inf)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
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


class Tally:
    """Counts what passes through one tensor.

    Args:
        reach: of the type it will have.
    """

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._largest = 0.0
        self._lost = 0.0
        self._nonzero = self._subnormal = self._flushed = 0
        self._nan = self._inf = self._size = 0

    def add(self, values: Array) -> None:
        """Count one run's values, floats of any shape."""
        lost, whole, flat = 0.0, 0.0, values.reshape(-1)
        for start in range(0, flat.size, _PART):
            part = self._finite(flat[start : start + _PART])
            lost += self._count(part)
            whole += float(np.square(part, dtype=np.float64).sum())
        self._size += flat.size
        self._lost = max(self._lost, math.sqrt(lost / whole) if whole else 0.0)

    def headroom(self, tensor: str, node: str, operator: str) -> Headroom:
        """What was counted."""
        nonzero = max(self._nonzero, 1)
        return Headroom(
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

    def _finite(self, values: Array) -> Array:
        """Magnitudes; non-numbers are counted and left out."""
        magnitudes: Array = np.abs(values)
        finite = np.isfinite(magnitudes)
        if finite.all():
            return magnitudes
        self._nan += int(np.isnan(magnitudes).sum())
        self._inf += int(np.isinf(magnitudes).sum())
        return magnitudes[finite]

    def _count(self, magnitudes: Array) -> float:
        """Count finite magnitudes; the sum of squares of what rounding takes from the small ones."""
        reach = self._reach
        self._largest = max(self._largest, float(magnitudes.max(initial=0.0)))
        self._nonzero += int(np.count_nonzero(magnitudes))
        small = magnitudes[(magnitudes < reach.smallest_normal) & (magnitudes > 0)].astype(np.float64)
        kept = np.rint(small / reach.smallest) * reach.smallest
        self._subnormal += small.size
        self._flushed += int((kept == 0).sum())
        return float(np.square(small - kept).sum())


def headroom(
    probe: Probe, path: Path, feeds: Sequence[Mapping[str, Array]], half: Half
) -> tuple[Headroom, ...]:
    """Every float tensor of a graph: its inputs, its weights, the results of its nodes in their order.

    Args:
        probe: runs the graph.
        path: an fp32 graph.
        feeds: one mapping for each run.
        half: the type whose ends count.

    Raises:
        EngineError: the graph cannot be run.
    """
    graph, reach = ir.load(path).graph, REACHES[half]
    made = {str(value.name): node for node in graph for value in node.outputs if is_single(value)}
    tallies = {name: Tally(reach) for name in made}
    for _, name, values in probe(path, feeds, tuple(made)):
        tallies[name].add(values)
    return (
        *_inputs(graph, feeds, reach),
        *_weights(graph, reach),
        *(tallies[name].headroom(name, node.name or "", node.op_type) for name, node in made.items()),
    )


def is_single(value: ir.Value | None) -> bool:
    """Whether a tensor is one of those that half precision is about."""
    return value is not None and value.dtype == ir.DataType.FLOAT and bool(value.name)


def _inputs(graph: ir.Graph, feeds: Sequence[Mapping[str, Array]], reach: Reach) -> list[Headroom]:
    found = []
    for value in graph.inputs:
        if is_single(value) and value.name not in graph.initializers:
            tally = Tally(reach)
            for feed in feeds:
                tally.add(feed[str(value.name)])
            found.append(tally.headroom(str(value.name), "", INPUT))
    return found


def _weights(graph: ir.Graph, reach: Reach) -> list[Headroom]:
    """One weight in memory at a time; they are mapped from their file."""
    found = []
    for name, value in graph.initializers.items():
        if is_single(value) and value.const_value is not None:
            tally = Tally(reach)
            tally.add(value.const_value.numpy())
            found.append(tally.headroom(name, "", WEIGHT))
    return found
