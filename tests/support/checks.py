"""What the command `check` says of a report, and reports made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import typer

from refdiff.accuracy.tolerances import graph_tolerance, judge, judge_samples
from refdiff.cli.check import print_report
from refdiff.contracts.parity import Parity
from refdiff.verification.report import CheckReport, Ladder, OutputParity, PrecisionResult
from refdiff.verification.task_agreement import TaskAgreement


def report_on(
    samples: Mapping[str, Sequence[float]], *, precision: str = "int8", error: float = 1e-5
) -> CheckReport:
    """A report on one graph with this error, and on one variant whose samples agree like this."""
    parity = Parity(error, 1.0)
    output = OutputParity(
        graph="unet",
        output="eps",
        precision=precision,
        torch=parity,
        before=None,
        feeds=None,
        tolerance=graph_tolerance(precision, "unet"),
    )
    result = PrecisionResult(
        bundle="bundle", precision=precision, backend="ort-rounded", note=None, outputs=(output,)
    )
    verdicts = judge_samples(precision, samples)
    return CheckReport(
        bundle=Path("bundle"),
        model="mini",
        precision=precision,
        backend="ort-rounded",
        backend_reason="named",
        ladder=Ladder(results=(result,)),
        answer=judge(
            "answer",
            precision,
            {"tokens": 1.0, "heat_correlation": 1.0, "mask_iou": 1.0, "score_error": 0.0},
        ),
        task=TaskAgreement(
            count=len(next(iter(samples.values()))),
            verdicts={"edge": verdicts},
            noise_floor={"edge": {verdict.name: 0.9 for verdict in verdicts}},
        ),
        not_run=None,
        cautions=("random weights: the mask means nothing", "precision int8: see refdiff check BUNDLE"),
    )


def said_by(
    report: CheckReport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command whose check measured this."""
    monkeypatch.setenv("COLUMNS", "400")
    code = 0
    try:
        print_report(report, as_json="--json" in arguments, require_verdict="--require-verdict" in arguments)
    except typer.Exit as ended:
        code = ended.exit_code
    streams = capsys.readouterr()
    return code, streams.out, streams.err
