"""`check`: compare a bundle with its golden tensors, and with the torch reference where torch is installed.

The golden tensors are compared as a parity ladder: torch, the bundle's more exact siblings, then the bundle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.accuracy.tolerances import Verdict, judge
from refdiff.calibration.calibrate import open_feeds
from refdiff.contracts.inspection import bundle_cautions, find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, BackendOptions, Options, RunOptions
from refdiff.contracts.progress import Progress, silent
from refdiff.data.sample import Dataset, Sample
from refdiff.data.synthetic import RenderedScenes
from refdiff.engines.factory import open_sessions
from refdiff.errors import EngineError, InputError
from refdiff.runtime.golden_answer import compare_answers, give_answer
from refdiff.verification.parity import EXACT, BackendRun, compare_precisions, plan_runs
from refdiff.verification.report import CheckReport
from refdiff.verification.task_agreement import TaskAgreement, compare_with_reference, reference_of

if TYPE_CHECKING:
    from refdiff.calibration.feeds import FeedStore
    from refdiff.contracts.stack import ModelStack

__all__ = ["CHECKED_RUNS", "CHECKED_SCENES", "CheckReport", "check"]

CHECKED_SCENES = RenderedScenes(count=8)
"""Held-out scenes."""

CHECKED_RUNS = (RunOptions(variant="official"), RunOptions(variant="edge"))

ON_REQUEST = "left out on request"


def check(
    bundle: Path | str,
    *,
    against: Sequence[Path | str] = (),
    feeds: Path | str | None = None,
    dataset: Dataset | None = CHECKED_SCENES,
    options: Sequence[RunOptions] = CHECKED_RUNS,
    backend: BackendOptions = DEFAULT_BACKEND,
    stack: ModelStack | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Measure a bundle against its golden tensors, and against the torch reference where torch is installed.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        against: more exact bundles of the same model, the steps between torch and this bundle. For a bundle
            of the miniature the built-in one in fp32 is added.
        feeds: a recording of `calibrate`, on which the bundle is compared with its most exact sibling.
        dataset: what reference and bundle both segment; None leaves the reference out and needs no torch.
        options: what is computed, one value for each variant.
        backend: where and how the graphs run; "auto" without a GPU runs half precision with every result
            rounded.
        stack: the torch modules to compare with; None takes those of the bundle's model, where they are
            installed and are the weights it was exported from.
        progress: called with one line at each step.

    Raises:
        BundleError: a bundle is missing, damaged or newer.
        InputError: an unknown option, a precision without gates, or `against` or `feeds` that do not fit
            the bundle.
        EngineError: a graph failed.
    """
    expected = next((each.expect for each in options if each.expect is not None), None)
    progress, opened = progress or silent, find_bundle(bundle, expect=expected)
    per_variant = {each.variant: each.pipeline_options(opened.spec) for each in options}
    runs = plan_runs(opened, against, backend.name)
    ladder = compare_precisions(runs, _open_feeds(feeds, runs), threads=backend.threads, progress=progress)
    progress("repeating the golden answer")
    answer = _compare_answer(runs[-1], backend.threads)
    modules, not_run = (None, ON_REQUEST) if dataset is None else reference_of(opened, stack)
    task = TaskAgreement()
    if modules is not None and dataset is not None:
        task = _compare(runs[-1], modules, per_variant, tuple(dataset), backend.threads, progress)
    return CheckReport(
        bundle=opened.path,
        model=opened.spec.name,
        precision=opened.manifest.precision,
        backend=runs[-1].backend,
        backend_reason=runs[-1].reason,
        ladder=ladder,
        answer=answer,
        task=task,
        not_run=not_run,
        cautions=bundle_cautions(opened),
    )


def _open_feeds(feeds: Path | str | None, runs: Sequence[BackendRun]) -> FeedStore | None:
    """Open the recording, which needs two bundles to compare."""
    if feeds is None:
        return None
    judged = runs[-1]
    if len(runs) < 2:
        more = "name a more exact bundle (--against), or leave out --feeds"
        raise InputError(
            f"{feeds} holds feeds without torch's answers, and nothing to compare {judged.bundle.path} with; "
            f"{'leave out --feeds' if judged.precision == EXACT else more}"
        )
    return open_feeds(feeds, judged.bundle)


def _compare_answer(run: BackendRun, threads: int | None) -> tuple[Verdict, ...]:
    """Repeat the recorded answer, which covers tokenizer, resizing, crops and scores as well as the graphs.

    In fewer bits than fp32 a single image may get another candidate; there the closest one is compared. With
    random weights masks mean nothing, and are not compared.
    """
    bundle = run.bundle
    values = _answer_parity(run, threads)
    if bundle.manifest.random_seed is not None:
        values = {name: values[name] for name in ("tokens", "heat_correlation")}
    verdicts = judge("answer", run.precision, values)
    return tuple(verdict.named(f"golden answer {verdict.name}") for verdict in verdicts)


def _answer_parity(run: BackendRun, threads: int | None) -> dict[str, float]:
    """Return the measured values by the names of their gates; NaN if the bundle gives no answer."""
    bundle, recorded = run.bundle, run.bundle.golden_answer()
    try:
        given, answer = give_answer(
            open_sessions(bundle, backend=run.backend, threads=threads),
            bundle.spec,
            tokenizer_json=bundle.tokenizer_json(),
            positions=bundle.clip_positions(),
            prompts=bundle.prompt_vectors(),
            image=recorded.image,
            phrase=recorded.phrase,
            variant=recorded.variant,
        )
    except EngineError:  # such as values that are not finite; the graph's own gates name it
        return dict.fromkeys(("tokens", "heat_correlation", "mask_iou", "score_error"), math.nan)
    parity = compare_answers(given, answer, recorded)
    return {
        "tokens": float(parity.same_tokens),
        "heat_correlation": parity.heat_correlation,
        "mask_iou": parity.mask_iou if run.precision == EXACT else parity.candidate_iou,
        "score_error": parity.score_error,
    }


def _compare(
    run: BackendRun,
    stack: ModelStack,
    variants: Mapping[str, Options],
    samples: Sequence[Sample],
    threads: int | None,
    progress: Progress,
) -> TaskAgreement:
    sessions = open_sessions(run.bundle, backend=run.backend, threads=threads)
    try:
        return compare_with_reference(run.bundle, sessions, stack, variants, samples, progress)
    finally:
        sessions.close()
