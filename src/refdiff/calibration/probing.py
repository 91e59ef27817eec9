"""How this room looks into a running graph: a function it is given, since it runs nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from refdiff.contracts.session import Array

if TYPE_CHECKING:
    import onnx_ir as ir


Reduction: TypeAlias = "Callable[[ir.Value], Sequence[ir.Node]]"
"""What is put behind a tensor; the result of its last node is handed out in the tensor's place."""


class Probe(Protocol):
    """See `refdiff.engines.intermediate_tensors.probe`, the one there is."""

    def __call__(
        self,
        model: ir.Model | Path,
        feeds: Sequence[Mapping[str, Array]],
        names: Sequence[str],
        *,
        folder: Path | None = None,
        reduction: Reduction | None = None,
    ) -> Iterator[tuple[int, str, Array]]:
        """Feed index, tensor name and values, for every feed and name."""
        ...
