"""What `check` measured, as a value: verdicts, the ladder, the noise floor and the worst cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.accuracy.tolerances import Verdict
from refdiff.errors import GateError
from refdiff.verification.ladder import Ladder
from refdiff.verification.task_agreement import ComparedSample


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What was measured, beside its limits."""

    bundle: Path
    model: str
    precision: str
    backend: str
    backend_reason: str
    """Why the judged bundle ran on it."""
    ladder: Ladder
    """The bundle and its more exact siblings on the same recorded tensors."""
    golden: tuple[Verdict, ...]
    """Per graph: the error on the bundle's recorded tensors."""
    golden_correlation: tuple[Verdict, ...]
    """Per graph: the correlation on the same tensors."""
    feeds: tuple[Verdict, ...]
    """Per graph: error and correlation on recorded feeds, to the most exact sibling; empty without feeds."""
    reference: Mapping[str, tuple[Verdict, ...]]
    """Per variant: agreement with the torch reference; empty when that was not run."""
    noise_floor: Mapping[str, Mapping[str, float]]
    """Per variant: agreement of the reference with itself under another seed; not a gate."""
    count: int
    """Questions, one per scene, that bundle and reference answered under each variant."""
    worst: tuple[ComparedSample, ...]
    """The scenes on which bundle and reference differ most."""
    unanswered: str | None
    """How the bundle failed at one of the reference's questions; None when it answered all."""
    not_run: str | None
    """Why the comparison with the reference was not run; None when it was."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All of them; those of the task named with their variant."""
        graphs = self.golden + self.golden_correlation + self.feeds
        return graphs + tuple(
            verdict.named(f"{variant} {verdict.name}")
            for variant, verdicts in self.reference.items()
            for verdict in verdicts
        )

    @property
    def passed(self) -> bool:
        """Every value that was measured is within its limit, and every question was answered."""
        return self.unanswered is None and all(verdict.passed for verdict in self.verdicts)

    @property
    def shortfall(self) -> str | None:
        """The failed gates, and the question without an answer; None when all passed."""
        failed = [str(verdict) for verdict in self.verdicts if not verdict.passed]
        parts = [f"{len(failed)} of {len(self.verdicts)} gates failed: {'; '.join(failed)}"] if failed else []
        if self.unanswered is not None:
            parts.append(f"the bundle does not answer {self.unanswered}")
        return "; ".join(parts) or None

    @property
    def failure(self) -> str | None:
        """One line: `shortfall`, and the node to blame; None when all passed."""
        fault = self.ladder.fault
        if self.shortfall is None or fault is None:
            return self.shortfall
        return f"{self.shortfall}. First divergence: {fault}"

    def require(self) -> None:
        """Refuse a report with a failed gate.

        Raises:
            GateError: names the failed gates.
        """
        if self.failure is not None:
            raise GateError(self.failure)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "bundle": str(self.bundle),
            "model": self.model,
            "precision": self.precision,
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "backend_note": self.ladder.judged.note,
            "passed": self.passed,
            "golden": [verdict.to_json() for verdict in self.golden],
            "golden_correlation": [verdict.to_json() for verdict in self.golden_correlation],
            "feeds": [verdict.to_json() for verdict in self.feeds],
            "ladder": self.ladder.to_json(),
            "reference": {name: [each.to_json() for each in part] for name, part in self.reference.items()},
            "noise_floor": {name: dict(part) for name, part in self.noise_floor.items()},
            "reference_count": self.count,
            "reference_unanswered": self.unanswered,
            "reference_not_run": self.not_run,
        }
