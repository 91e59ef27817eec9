"""`check`: compare a bundle with its golden tensors, and with the torch reference where torch is installed.

The golden tensors are compared as a parity ladder: torch, the bundle's more exact siblings, then the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.calibration.calibrate import open_feeds
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, BackendOptions, Options, RunOptions
from refdiff.contracts.progress import Progress, silent
from refdiff.data.sample import Dataset, Sample
from refdiff.data.synthetic import RenderedScenes
from refdiff.engines.factory import open_sessions
from refdiff.errors import InputError
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
    progress, opened = progress or silent, find_bundle(bundle)
    per_variant = {each.variant: each.pipeline_options(opened.spec) for each in options}
    runs = plan_runs(opened, against, backend.name)
    ladder = compare_precisions(runs, _open_feeds(feeds, runs), threads=backend.threads, progress=progress)
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
        task=task,
        not_run=not_run,
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
