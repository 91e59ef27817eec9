"""The parity ladder: torch, then one rung per bundle, fp32 first, all on the same recorded tensors.

In: what every rung measured. Out: which rung, graph and output is the first outside its tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from refdiff.accuracy.tolerances import GraphTolerance, Verdict, judge
from refdiff.contracts.parity import Parity
from refdiff.verification.divergence import Fault


@dataclass(frozen=True, kw_only=True)
class Step:
    """One output of one graph on one rung."""

    graph: str
    output: str
    precision: str
    """Of the graph: in an int8 bundle some may have stayed in half precision."""
    torch: Parity
    """How close it comes to what torch answered on the golden feeds."""
    before: Parity | None
    """How close it comes to the rung before on the golden feeds; None on the first rung."""
    feeds: Parity | None
    """How close it comes to the first rung on recorded feeds, the worst of all; None where there are none."""
    tolerance: GraphTolerance

    @property
    def golden_passed(self) -> bool:
        """Close enough to torch."""
        return self._within(self.torch)

    @property
    def passed(self) -> bool:
        """Close enough to torch, and on recorded feeds to the first rung."""
        return self.golden_passed and (self.feeds is None or self._within(self.feeds))

    def _within(self, measured: Parity) -> bool:
        limit = self.tolerance
        return measured.error <= limit.error and measured.correlation >= limit.correlation

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "graph": self.graph,
            "output": self.output,
            "precision": self.precision,
            "from_torch": _parity_json(self.torch),
            "from_rung_before": _parity_json(self.before),
            "on_recorded_feeds": _parity_json(self.feeds),
            "error_at_most": self.tolerance.error,
            "correlation_at_least": self.tolerance.correlation,
            "passed": self.passed,
        }


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One bundle of the ladder."""

    bundle: str
    precision: str
    backend: str
    note: str | None
    """How half precision was executed; None where there is none."""
    steps: tuple[Step, ...]

    @property
    def passed(self) -> bool:
        """All its graphs are within their tolerances."""
        return self.first_failed is None

    @property
    def first_failed(self) -> Step | None:
        """The first output outside its graph's tolerance, in the pipeline's order."""
        return next((step for step in self.steps if not step.passed), None)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "bundle": self.bundle,
            "precision": self.precision,
            "backend": self.backend,
            "note": self.note,
            "passed": self.passed,
            "outputs": [step.to_json() for step in self.steps],
        }


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """All rungs, and where the first one breaks."""

    rungs: tuple[Rung, ...]
    """The most exact first, the bundle that is judged last."""
    fault: Fault | None = None
    """The first node that leaves its tolerance, in the first graph of the first rung that does."""
    fault_not_run: str | None = None
    """Why no node was looked for though a graph failed; None when one was, or none failed."""

    @property
    def judged(self) -> Rung:
        """The last rung."""
        return self.rungs[-1]

    @property
    def first_failed(self) -> tuple[Rung, Step] | None:
        """The first rung with a failed graph, and that graph's output."""
        found = ((rung, rung.first_failed) for rung in self.rungs)
        return next(((rung, step) for rung, step in found if step is not None), None)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        failed = self.first_failed
        return {
            "rungs": [rung.to_json() for rung in self.rungs],
            "first_failed": None
            if failed is None
            else {"precision": failed[0].precision, "graph": failed[1].graph, "output": failed[1].output},
            "first_fault": None if self.fault is None else self.fault.to_json(),
            "first_fault_not_run": self.fault_not_run,
        }


@dataclass(frozen=True, kw_only=True)
class RungVerdicts:
    """A rung's gates, one per graph: its worst output beside the limit of the graph's own precision."""

    error: tuple[Verdict, ...]
    correlation: tuple[Verdict, ...]
    feeds: tuple[Verdict, ...]
    """Error, then correlation, on recorded feeds; empty where there are none."""


def judge_rung(rung: Rung) -> RungVerdicts:
    """Lay a rung's measurements beside the committed limits."""
    worst: dict[str, tuple[Step, Parity, Parity | None]] = {}
    for step in rung.steps:
        if step.graph in worst:
            _, torch, feeds = worst[step.graph]
            worst[step.graph] = (step, step.torch.worse(torch), _worse(step.feeds, feeds))
        else:
            worst[step.graph] = (step, step.torch, step.feeds)
    errors, correlations, recorded = list[Verdict](), list[Verdict](), list[Verdict]()
    for step, torch, feeds in worst.values():
        errors.append(_error(step, torch))
        correlations.append(_correlation(step, torch))
        if feeds is not None:
            recorded += [_error(step, feeds, on=FEEDS), _correlation(step, feeds, on=FEEDS)]
    return RungVerdicts(error=tuple(errors), correlation=tuple(correlations), feeds=tuple(recorded))


FEEDS = " on recorded feeds"


def _error(step: Step, measured: Parity, *, on: str = "") -> Verdict:
    (verdict,) = judge("graph_error", step.precision, {step.graph: measured.error})
    return verdict.named(f"{step.graph}{on}") if on else verdict


def _correlation(step: Step, measured: Parity, *, on: str = "") -> Verdict:
    (verdict,) = judge("graph_correlation", step.precision, {step.graph: measured.correlation})
    return verdict.named(f"{step.graph} correlation{on}")


def _worse(one: Parity | None, other: Parity | None) -> Parity | None:
    return one if other is None else other if one is None else one.worse(other)


def _parity_json(parity: Parity | None) -> dict[str, float | None] | None:
    """JSON has no infinity: an error without a number is null."""
    if parity is None:
        return None
    error = parity.error if math.isfinite(parity.error) else None
    return {"error": error, "correlation": parity.correlation}
