"""How this room looks into a running graph: a function it is given, since it runs nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from refdiff.contracts.session import Array

if TYPE_CHECKING:
    import onnx_ir as ir


class Probe(Protocol):
    """See `refdiff.engines.probe.probe`, the one there is."""

    def __call__(
        self,
        model: ir.Model | Path,
        feeds: Sequence[Mapping[str, Array]],
        names: Sequence[str],
        *,
        folder: Path | None = None,
    ) -> Iterator[tuple[int, str, Array]]:
        """Feed index, tensor name and values, for every feed and name."""
        ...
