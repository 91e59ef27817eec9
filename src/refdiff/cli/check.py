"""The verb `check`; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.cli.app import Backend, BundleName, Expect, Json, Mode, Overwrite, Threads, choice, verb
from refdiff.cli.terminal import end, note, note_backend, print_answer, working

if TYPE_CHECKING:
    from refdiff.verification.report import CheckReport


@verb()
def check(
    bundle: BundleName,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BUNDLE",
            help="A more exact bundle of the same model; repeatable. For the miniature fp32 is added.",
        ),
    ] = None,
    feeds: Annotated[
        Path | None,
        typer.Option(
            help="Feeds that `refdiff calibrate` recorded, for comparison with the most exact bundle."
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="Held-out scenes per variant.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first scene.")] = 1_000_000,
    variant: Annotated[
        list[str] | None,
        choice("edge, official or paper; repeatable, official and edge if left out."),
    ] = None,
    mode: Mode = "full",
    backend: Backend = "auto",
    threads: Threads = None,
    golden_only: Annotated[
        bool, typer.Option("--golden-only", help="Leave out the torch reference.")
    ] = False,
    require_verdict: Annotated[
        bool,
        typer.Option("--require-verdict", help="Exit code 1 also if samples are too few to judge a gate."),
    ] = False,
    expect: Expect = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML page, with images of the worst cases.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure a bundle against its golden tensors and the torch reference; exit code 1 if a gate fails.

    A gate is a value with a limit. For each graph, on the golden tensors: error is the largest difference
    from torch's outputs over their range; correlation is that of both outputs; "from the one before" is the
    error from the more exact bundle above; "on feeds" is the error on recorded feeds (--feeds). Each bundle
    is a rung of the parity ladder. A graph that fails is searched for the first divergence, the first node
    outside the tolerance. The golden answer is the recorded image and phrase, answered again: tokens is 1 if
    the token ids are equal, score error is the largest difference of a score.

    For the task, per variant: value is the mean agreement of bundle and torch reference over the samples.
    Mask IoU: overlap of both answers. Argmax agreement: share of samples on which both choose the same
    candidate. Candidate recall: share of the reference's candidates that the bundle finds too. Rank
    agreement: share of pairs of candidates in the same order. Heat correlation: that of the attention maps.
    Noise floor: agreement of the reference with itself under another seed; it is not a gate.

    A value within its limit is ok. One that misses it is FAILED if its whole 95 % interval misses the limit
    too. Otherwise the samples are "too few" to judge it: the exit code is 0 (1 with --require-verdict), and
    "to decide" is the number of samples that decide if more are like these. docs/output.md explains all
    tables.
    """
    from refdiff.contracts.atomic_io import check_targets, write_files
    from refdiff.contracts.options import BackendOptions, RunOptions
    from refdiff.data.synthetic import RenderedScenes
    from refdiff.verification import check
    from refdiff.verification.tables import check_page

    if report is not None:
        check_targets([report], overwrite=overwrite)
    scenes = RenderedScenes(count=count, seed=seed)
    variants = variant or [each.variant for each in check.CHECKED_RUNS]
    with working() as progress:
        measured = check.check(
            bundle,
            against=against or (),
            feeds=feeds,
            dataset=None if golden_only else scenes,
            options=[RunOptions(variant=name, mode=mode, expect=expect) for name in variants],
            backend=BackendOptions(name=backend, threads=threads),
            progress=progress,
        )
        if report is not None:
            page = check_page(measured).to_html().encode(errors="replace")
            write_files({report: page}, overwrite=overwrite)
    note_backend(backend, measured.backend, measured.backend_reason)
    if report is not None:
        note(f"report: {report}")
    print_report(measured, as_json=as_json, require_verdict=require_verdict)


def print_report(report: CheckReport, *, as_json: bool, require_verdict: bool) -> None:
    """Print what a check measured, and end the verb with 1 if a gate failed.

    Args:
        report: from `refdiff.verification.check`.
        as_json: print the document instead of the page.
        require_verdict: end with 1 also if there are too few samples to judge a gate.
    """
    from refdiff.verification.tables import check_page

    print_answer(report.to_json(), lambda: check_page(report), as_json=as_json)
    if report.failure is not None:
        end(report.failure, 1)
    if report.undecided is not None:
        if require_verdict:
            end(report.undecided, 1)
        note(f"note: {report.undecided}")
