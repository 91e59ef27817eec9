"""The result of `check`: the parity ladder, the verdicts on it, and the agreement with the torch reference.

The parity ladder starts at torch and has a step per bundle, fp32 first, all fed the same recorded tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from refdiff.accuracy.tolerances import MOST_SAMPLES, GraphTolerance, Outcome, Verdict, judge
from refdiff.contracts.parity import Parity
from refdiff.errors import GateError
from refdiff.verification.divergence import Divergence
from refdiff.verification.task_agreement import TaskAgreement


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """The error of one output of one graph."""

    graph: str
    output: str
    precision: str
    """Precision of the graph: in an int8 bundle some graphs may have stayed in half precision."""
    torch: Parity
    """Compared with torch's answer, on the golden feeds."""
    before: Parity | None
    """Compared with the bundle before, on the golden feeds; None for the first bundle."""
    feeds: Parity | None
    """Compared with the first bundle, the worst of all recorded feeds; None without recorded feeds."""
    tolerance: GraphTolerance

    @property
    def golden_passed(self) -> bool:
        """The output is close enough to torch's on the golden feeds."""
        return self._within(self.torch)

    @property
    def passed(self) -> bool:
        """The output is also close enough to the first bundle's on recorded feeds."""
        return self.golden_passed and (self.feeds is None or self._within(self.feeds))

    def _within(self, measured: Parity) -> bool:
        limit = self.tolerance
        return measured.error <= limit.error and measured.correlation >= limit.correlation

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
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
class PrecisionResult:
    """One bundle of the ladder: every output of its graphs, in the pipeline's order."""

    bundle: str
    precision: str
    backend: str
    note: str | None
    """Way in which half precision was executed; None where there is none."""
    outputs: tuple[OutputParity, ...]

    @property
    def passed(self) -> bool:
        """All graphs are within their tolerances."""
        return self.first_failed is None

    @property
    def first_failed(self) -> OutputParity | None:
        """The first output outside its graph's tolerance."""
        return next((output for output in self.outputs if not output.passed), None)

    def error_verdicts(self) -> tuple[Verdict, ...]:
        """Return one verdict per graph: the error of its worst output on the golden feeds."""
        return tuple(_error_verdict(output, torch) for output, torch, _ in self._worst())

    def correlation_verdicts(self) -> tuple[Verdict, ...]:
        """Return one verdict per graph: the correlation of its worst output on the golden feeds."""
        return tuple(_correlation_verdict(output, torch) for output, torch, _ in self._worst())

    def feeds_verdicts(self) -> tuple[Verdict, ...]:
        """Return error and correlation per graph on recorded feeds; empty where there are none."""
        return tuple(
            verdict.named(f"{verdict.name} on recorded feeds")
            for output, _, feeds in self._worst()
            if feeds is not None
            for verdict in (_error_verdict(output, feeds), _correlation_verdict(output, feeds))
        )

    def _worst(self) -> Iterator[tuple[OutputParity, Parity, Parity | None]]:
        """Yield per graph one output and the worst parities of all its outputs, from torch and on feeds."""
        graphs: dict[str, list[OutputParity]] = {}
        for output in self.outputs:
            graphs.setdefault(output.graph, []).append(output)
        for outputs in graphs.values():
            on_feeds = [output.feeds for output in outputs if output.feeds is not None]
            torch = reduce(Parity.worse, (output.torch for output in outputs))
            yield outputs[-1], torch, reduce(Parity.worse, on_feeds) if on_feeds else None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "bundle": self.bundle,
            "precision": self.precision,
            "backend": self.backend,
            "note": self.note,
            "passed": self.passed,
            "outputs": [output.to_json() for output in self.outputs],
        }


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The parity ladder: all bundles, and where the first failing one diverges."""

    results: tuple[PrecisionResult, ...]
    """The most exact bundle first, the one that is judged last."""
    divergence: Divergence | None = None
    """The first node outside its tolerance, in the first graph of the first bundle that has one."""
    divergence_not_found: str | None = None
    """Reason why no node is named though a graph failed; None if one is, or none failed."""

    @property
    def judged(self) -> PrecisionResult:
        """The last bundle."""
        return self.results[-1]

    @property
    def first_failed(self) -> tuple[PrecisionResult, OutputParity] | None:
        """The first bundle with a failed graph, and that graph's output."""
        found = ((result, result.first_failed) for result in self.results)
        return next(((result, output) for result, output in found if output is not None), None)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        failed = self.first_failed
        return {
            "rungs": [result.to_json() for result in self.results],
            "first_failed": None
            if failed is None
            else {"precision": failed[0].precision, "graph": failed[1].graph, "output": failed[1].output},
            "first_fault": None if self.divergence is None else self.divergence.to_json(),
            "first_fault_not_run": self.divergence_not_found,
        }


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Everything that was measured, with its limits."""

    bundle: Path
    model: str
    precision: str
    backend: str
    backend_reason: str
    """Reason why the judged bundle ran on it."""
    ladder: Ladder
    """The bundle and its more exact siblings on the same recorded tensors."""
    answer: tuple[Verdict, ...]
    """The recorded image and phrase, answered again."""
    task: TaskAgreement
    """Agreement with the torch reference; empty if that was not run."""
    not_run: str | None
    """Reason why the comparison with the reference was not run; None if it was."""
    cautions: tuple[str, ...] = ()
    """What every answer of the bundle says of it."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts; those of the task named with their variant."""
        judged = self.ladder.judged
        graphs = judged.error_verdicts() + judged.correlation_verdicts() + judged.feeds_verdicts()
        return (
            graphs
            + self.answer
            + tuple(
                verdict.named(f"{variant} {verdict.name}")
                for variant, verdicts in self.task.verdicts.items()
                for verdict in verdicts
            )
        )

    @property
    def outcome(self) -> Outcome:
        """The worst of all verdicts; "failed" if a sample was not segmented."""
        found = {verdict.outcome for verdict in self.verdicts}
        if self.task.unanswered is not None or "failed" in found:
            return "failed"
        return "undecided" if "undecided" in found else "passed"

    @property
    def passed(self) -> bool:
        """Every measured value is within its limit, and every sample was segmented."""
        return self.outcome == "passed"

    def with_outcome(self, outcome: Outcome) -> tuple[Verdict, ...]:
        """Return the verdicts of one outcome."""
        return tuple(verdict for verdict in self.verdicts if verdict.outcome == outcome)

    @property
    def shortfall(self) -> str | None:
        """The failed gates, and the sample without an answer; None if there are none."""
        failed = self.with_outcome("failed")
        named = "; ".join(map(str, failed))
        parts = [f"{len(failed)} of {len(self.verdicts)} gates failed: {named}"] if failed else []
        if self.task.unanswered is not None:
            parts.append(f"the bundle does not answer {self.task.unanswered}")
        return "; ".join(parts) or None

    @property
    def undecided(self) -> str | None:
        """One line: the gates with too few samples, and how many would decide all; None if there are none."""
        few = self.with_outcome("undecided")
        if not few:
            return None
        named = "; ".join(map(str, few))
        gates = f"{len(few)} of {len(self.verdicts)} gates"
        return f"too few samples to judge {gates}: {named}; {_advice(few)}"

    @property
    def failure(self) -> str | None:
        """One line: the shortfall and the first divergent node; None if nothing failed."""
        divergence = self.ladder.divergence
        if self.shortfall is None or divergence is None:
            return self.shortfall
        return f"{self.shortfall}. First divergence: {divergence}"

    def require(self) -> None:
        """Refuse a report with a failed gate.

        Raises:
            GateError: names the failed gates.
        """
        if self.failure is not None:
            raise GateError(self.failure)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        judged, task = self.ladder.judged, self.task
        return {
            "bundle": str(self.bundle),
            "model": self.model,
            "precision": self.precision,
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "backend_note": judged.note,
            "passed": self.passed,
            "verdict": self.outcome,
            "cautions": list(self.cautions),
            "golden": [verdict.to_json() for verdict in judged.error_verdicts()],
            "golden_correlation": [verdict.to_json() for verdict in judged.correlation_verdicts()],
            "golden_answer": [verdict.to_json() for verdict in self.answer],
            "feeds": [verdict.to_json() for verdict in judged.feeds_verdicts()],
            "ladder": self.ladder.to_json(),
            "reference": {name: [each.to_json() for each in part] for name, part in task.verdicts.items()},
            "noise_floor": {name: dict(part) for name, part in task.noise_floor.items()},
            "reference_count": task.count,
            "reference_unanswered": task.unanswered,
            "reference_not_run": self.not_run,
        }


def _advice(undecided: Sequence[Verdict]) -> str:
    """Return how many samples would decide all of these gates."""
    needed = [None if each.sampling is None else each.sampling.needed for each in undecided]
    most = max((each for each in needed if each is not None), default=0)
    if None in needed:
        return f"even {MOST_SAMPLES} samples would not decide, if more are like these"
    return f"if more samples are like these, {most} decide (--count {most})"


def _error_verdict(output: OutputParity, measured: Parity) -> Verdict:
    (verdict,) = judge("graph_error", output.precision, {output.graph: measured.error})
    return verdict


def _correlation_verdict(output: OutputParity, measured: Parity) -> Verdict:
    (verdict,) = judge("graph_correlation", output.precision, {output.graph: measured.correlation})
    return verdict.named(f"{output.graph} correlation")


def _parity_json(parity: Parity | None) -> dict[str, float | None] | None:
    """Return both numbers; JSON has no infinity, so an error without a number is null."""
    if parity is None:
        return None
    error = parity.error if math.isfinite(parity.error) else None
    return {"error": error, "correlation": parity.correlation}
