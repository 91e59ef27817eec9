"""A question's time in parts that add up to all of it.

In: the spans of one question, a verb `encode` and a verb `segment`. Out: milliseconds by part. A part is a
stage and, of that stage, one graph or the host's work around its graphs; loads and what lies in no stage are
parts too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refdiff.contracts.graphs import GRAPHS
from refdiff.profiling.spans import Span
from refdiff.runtime.stages import STAGES

HOST = "host"
BETWEEN = "between stages"
LOADING = "loading"


@dataclass(frozen=True, order=False)
class Part:
    """One row of a profile."""

    stage: str
    what: str
    """A graph's name, or `HOST`."""

    def __str__(self) -> str:
        return f"{self.stage}/{self.what}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part whose `str` it is."""
        stage, _, what = text.partition("/")
        return cls(stage, what)

    @property
    def order(self) -> tuple[int, int]:
        """METHOD's order of stages; in a stage, graphs in pipeline order and the host last."""
        stages, graphs = (*STAGES, BETWEEN, LOADING), (*GRAPHS, HOST)
        return _place(self.stage, stages), _place(self.what, graphs)


def by_part(spans: Sequence[Span]) -> dict[Part, float]:
    """Milliseconds of each part: every span's own time, without what lies in it."""
    parts: dict[Part, float] = defaultdict(float)
    for index, span in enumerate(spans):
        inside = sum(child.ms for child in spans[index + 1 :] if child.parent == index)
        parts[part_of(spans, index)] += span.ms - inside
    return {part: parts[part] for part in sorted(parts, key=lambda each: each.order)}


def part_of(spans: Sequence[Span], index: int) -> Part:
    """Whose time it is."""
    span = spans[index]
    if span.kind == "load":
        return Part(LOADING, span.name)
    stage = next((each.name for each in _outwards(spans, index) if each.kind == "stage"), BETWEEN)
    return Part(stage, span.name if span.kind == "graph" else HOST)


def _outwards(spans: Sequence[Span], index: int) -> Iterator[Span]:
    at: int | None = index
    while at is not None:
        yield spans[at]
        at = spans[at].parent


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)
