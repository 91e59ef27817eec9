"""The report of `evaluate`, as a value, a document and a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refdiff.accuracy.metrics import Metrics
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.reports import Column, Table, numeric


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model and the options it is evaluated with."""

    bundle: str
    runtime: str
    """"torch" or "onnx"."""
    options: RunOptions
    backend: BackendOptions
    """Where and how the graphs run; ignored by the torch reference."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The metrics of one model on one data set."""

    model: EvaluatedModel
    backend: str | None
    """The back-end that ran the graphs; None for the reference."""
    backend_reason: str | None
    seed: int | None
    """Seed of the first rendered scene; None for other data sets."""
    metrics: Metrics
    by_cue: dict[str, Metrics]
    """Cue (kind, colour, size, place, relation) -> metrics of the samples whose phrase uses it."""
    unmatched: int
    """Samples in which the model found nothing."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "runtime": self.model.runtime,
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "bundle": self.model.bundle if self.model.runtime == "onnx" else None,
            "variant": self.model.options.variant,
            "mode": self.model.options.mode,
            "seed": self.seed,
            **_metrics_json(self.metrics),
            "unmatched": self.unmatched,
            "by_cue": {cue: _metrics_json(each) for cue, each in self.by_cue.items()},
            "seconds": round(self.seconds, 2),
        }


def evaluation_table(report: EvaluationReport) -> Table:
    """Build a table with a row for all samples and one for each cue."""
    model = report.model
    levels = tuple(report.metrics.precision_at)
    groups = {"all": report.metrics, **{f"with {cue}": part for cue, part in report.by_cue.items()}}
    return Table(
        title=f"{model.runtime}, {model.options.variant}, {model.options.mode}: "
        f"{report.metrics.count} samples, {report.seconds:.0f} s",
        columns=(
            Column("phrases"),
            *numeric("count", "mIoU", "oIoU", *(f"Pr@{level}" for level in levels), "oracle mIoU"),
        ),
        rows=[
            (
                name,
                str(part.count),
                *(f"{value:.4f}" for value in (part.miou, part.oiou)),
                *(f"{part.precision_at[level]:.4f}" for level in levels),
                f"{part.oracle_miou:.4f}",
            )
            for name, part in groups.items()
        ],
        footnotes=(f"nothing found in {report.unmatched} samples",),
    )


def _metrics_json(measured: Metrics) -> dict[str, Any]:
    return {
        "count": measured.count,
        "miou": measured.miou,
        "oiou": measured.oiou,
        **{f"pr@{level}": share for level, share in measured.precision_at.items()},
        "oracle_miou": measured.oracle_miou,
    }
