"""A bundle's multiply-adds for the shapes its graphs are fed; unknown, and why, where nobody can count."""

from __future__ import annotations

from collections.abc import Mapping

from refdiff.api.extras import import_torch_room
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.errors import InputError, MissingDependencyError

Shapes = Mapping[str, tuple[int, ...]]


class Arithmetic:
    """Counts once for each graph and shape.

    `why_not` says why something is unknown; None while nothing is.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._contract = graph_contract(bundle.spec)
        self._known: dict[tuple[str, tuple[tuple[str, int], ...]], int | None] = {}
        self.why_not: str | None = None

    def __call__(self, graph: str, shapes: Shapes) -> int | None:
        """Of one run; None where it is unknown."""
        sizes = self._sizes(graph, shapes)
        key = (graph, tuple(sizes.items()))
        if key not in self._known:
            self._known[key] = self._count(graph, sizes)
        return self._known[key]

    def _sizes(self, graph: str, shapes: Shapes) -> dict[str, int]:
        """The contract's named dimensions."""
        return {
            dimension: size
            for tensor in self._contract[graph].inputs
            for dimension, size in zip(tensor.shape, shapes[tensor.name], strict=True)
            if isinstance(dimension, str)
        }

    def _count(self, graph: str, sizes: Mapping[str, int]) -> int | None:
        try:
            counter = import_torch_room("refdiff.export.multiply_adds", "counting multiply-adds")
            return int(counter.multiply_adds(self._bundle.graph_path(graph), sizes))
        except (InputError, MissingDependencyError) as error:
            self.why_not = str(error)
            return None
