"""`check`: is a bundle still the reference? Golden tensors everywhere, the torch reference where torch is.

The golden tensors are climbed as a ladder: torch, then the bundle's more exact siblings, then the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.calibration.calibrate import open_feeds
from refdiff.contracts.atomic_io import check_targets, write_files
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, BackendOptions, Options, options_for
from refdiff.contracts.progress import Progress, silent
from refdiff.data.sample import Sample
from refdiff.data.synthetic import HELD_OUT_FROM, RenderedScenes
from refdiff.engines.factory import open_sessions
from refdiff.errors import InputError
from refdiff.verification.ladder import judge_rung
from refdiff.verification.parity import EXACT, Execution, climb, executions
from refdiff.verification.report import CheckReport
from refdiff.verification.tables import check_page
from refdiff.verification.task_agreement import TaskAgreement, compare_with_reference, reference_of

if TYPE_CHECKING:
    from refdiff.calibration.feeds import FeedStore
    from refdiff.contracts.stack import ModelStack

__all__ = ["CHECKED_VARIANTS", "CheckReport", "check"]

CHECKED_VARIANTS = ("official", "edge")

ON_REQUEST = "left out on request"


def check(
    bundle: Path | str,
    *,
    against: Sequence[Path | str] = (),
    feeds: Path | str | None = None,
    count: int = 8,
    seed: int = HELD_OUT_FROM,
    variants: Sequence[str] = CHECKED_VARIANTS,
    mode: str = "full",
    backend: BackendOptions = DEFAULT_BACKEND,
    golden_only: bool = False,
    stack: ModelStack | None = None,
    report: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Measure a bundle against its golden tensors, and against the torch reference where that is installed.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        against: more exact bundles of the same model: the rungs between torch and this bundle. The built-in
            one in fp32 need not be named.
        feeds: a recording of `calibrate`, to compare the bundle with its most exact sibling on.
        count: held-out scenes per variant.
        seed: of the first scene.
        variants: which to compare.
        mode: as in `load`.
        backend: where and how the graphs run; "auto" without a GPU runs half precision with every result
            rounded.
        golden_only: leave the reference out; needs no torch.
        stack: the torch modules to compare with; None takes those of the bundle's model, where they are
            installed and are the weights it was exported from.
        report: where an HTML page of it all will be; None writes none.
        overwrite: replace a page that is there.
        progress: told one line at each step.

    Raises:
        BundleError: a bundle is missing, damaged or newer.
        InputError: an unknown option, a precision without gates, `against` or `feeds` that do not fit the
            bundle, or a report that cannot be written.
        EngineError: a graph failed.
    """
    scenes = RenderedScenes(count=count, seed=seed)
    page = None if report is None else Path(report)
    if page is not None:
        check_targets([page], overwrite=overwrite)
    tell, opened = progress or silent, find_bundle(bundle)
    per_variant = {name: options_for(opened.spec, variant=name, mode=mode) for name in variants}
    rungs = executions(opened, against, backend.name)
    ladder = climb(rungs, _open_feeds(feeds, rungs), threads=backend.threads, progress=tell)
    modules, not_run = (None, ON_REQUEST) if golden_only else reference_of(opened, stack)
    task = TaskAgreement()
    if modules is not None:
        task = _compare(rungs[-1], modules, per_variant, tuple(scenes), backend.threads, tell)
    verdicts = judge_rung(ladder.judged)
    result = CheckReport(
        bundle=opened.path,
        model=opened.spec.name,
        precision=opened.manifest.precision,
        backend=rungs[-1].backend,
        backend_reason=rungs[-1].reason,
        ladder=ladder,
        golden=verdicts.error,
        golden_correlation=verdicts.correlation,
        feeds=verdicts.feeds,
        reference=task.verdicts,
        noise_floor=task.noise_floor,
        count=task.count,
        worst=task.worst,
        unanswered=task.unanswered,
        not_run=not_run,
    )
    if page is not None:
        write_files({page: check_page(result).to_html().encode(errors="replace")}, overwrite=overwrite)
    return result


def _open_feeds(feeds: Path | str | None, rungs: Sequence[Execution]) -> FeedStore | None:
    """The recording, which only a ladder of two rungs or more has a use for."""
    if feeds is None:
        return None
    judged = rungs[-1]
    if len(rungs) < 2:
        more = "name a more exact bundle (--against), or leave out --feeds"
        raise InputError(
            f"{feeds} holds feeds without torch's answers, and nothing to compare {judged.bundle.path} with; "
            f"{'leave out --feeds' if judged.precision == EXACT else more}"
        )
    return open_feeds(feeds, judged.bundle)


def _compare(
    execution: Execution,
    stack: ModelStack,
    variants: Mapping[str, Options],
    samples: Sequence[Sample],
    threads: int | None,
    tell: Progress,
) -> TaskAgreement:
    sessions = open_sessions(execution.bundle, backend=execution.backend, threads=threads)
    try:
        return compare_with_reference(execution.bundle, sessions, stack, variants, samples, tell)
    finally:
        sessions.close()
