"""`evaluate`: metrics of a bundle, or of the torch reference, on a data set with true masks.

In: samples. Out: an `EvaluationReport`, with metrics of all samples and of those whose phrase uses a cue.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from refdiff.accuracy.metrics import Metrics, Overlap, metrics, overlap
from refdiff.batch.prefetch import map_ahead
from refdiff.contracts.inspection import BUILT_IN, check_trained, find_bundle
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.results import Segmentation
from refdiff.data.sample import Dataset, Sample, true_mask
from refdiff.errors import InputError
from refdiff.loading import open_backend, segmenter_of
from refdiff.models.choice import load_miniature
from refdiff.reports import Column, Table, numeric


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model and the options it is evaluated with."""

    bundle: str
    runtime: str
    """"torch" or "onnx"."""
    options: RunOptions
    backend: BackendOptions
    """Options of where and how the graphs run; ignored by the torch reference."""


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
        footnotes=(f"no mask in {report.unmatched} samples",),
    )


def _metrics_json(measured: Metrics) -> dict[str, Any]:
    return {
        "count": measured.count,
        "miou": measured.miou,
        "oiou": measured.oiou,
        **{f"pr@{level}": share for level, share in measured.precision_at.items()},
        "oracle_miou": measured.oracle_miou,
    }


RUNTIMES = ("torch", "onnx")
"""The torch reference, and the bundle's graphs."""

PURPOSE = "the torch reference"

_REPORT_EVERY = 10
_TORCH_THREADS = 1
"""Threads of a process: the modules are too small to gain from more, and processes share the cores."""

_SAMPLES_AHEAD = 2
"""Samples for each worker process that are submitted before their results are taken."""


@dataclass(frozen=True, kw_only=True)
class SampleScore:
    """The score of one sample."""

    overlap: Overlap
    cues: frozenset[str]
    matched: bool


Segment = Callable[[Sample], Segmentation]


def evaluate(
    bundle: Path | str,
    dataset: Dataset,
    *,
    runtime: str = "onnx",
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    jobs: int = 1,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Segment every sample of a data set and compare the masks with the true ones (METHOD §11).

    Args:
        bundle: its folder, or "mini" for the built-in one, the only one that the torch reference exists for.
        dataset: samples with true masks.
        runtime: "onnx" for the bundle's graphs, "torch" for the reference.
        options: what is computed.
        backend: where and how the graphs run; not for the reference.
        jobs: number of processes.
        progress: called with one line every few samples.

    Raises:
        InputError: an option cannot be used, or a sample has no true mask.
        BundleError: the bundle is missing, damaged or newer.
        MissingDependencyError: torch or the back-end's package is not installed.
        EngineError: a graph failed.
    """
    if jobs < 1:
        raise InputError(f"got {jobs} jobs, expected 1 or more")
    model = EvaluatedModel(bundle=str(bundle), runtime=runtime, options=options, backend=backend)
    report, start = progress or silent, time.perf_counter()
    chosen, reason = _backend(model)
    scores: list[SampleScore] = []
    for score in _score_all(model, dataset, jobs):
        scores.append(score)
        if len(scores) % _REPORT_EVERY == 0 or len(scores) == len(dataset):
            report(f"{len(scores)}/{len(dataset)} samples, mIoU {_metrics(scores).miou:.3f}")
    return EvaluationReport(
        model=model,
        backend=chosen,
        backend_reason=reason,
        seed=dataset.fingerprint.get("seed"),
        metrics=_metrics(scores),
        by_cue=_metrics_by_cue(scores),
        unmatched=sum(not score.matched for score in scores),
        seconds=time.perf_counter() - start,
    )


def _backend(model: EvaluatedModel) -> tuple[str, str] | tuple[None, None]:
    """Check the options, and return the back-end that will run and why; no graph is loaded."""
    if model.runtime not in RUNTIMES:
        raise InputError(f"unknown runtime {model.runtime!r}; choose one of: {', '.join(RUNTIMES)}")
    if model.runtime == "torch":
        if model.bundle not in BUILT_IN:
            raise InputError(
                f"the torch reference exists for the built-in miniature only, got {model.bundle}; name mini"
            )
        if model.backend.name != "auto":
            raise InputError(
                f"back-end {model.backend.name!r} runs graphs, not the torch reference; leave it out"
            )
        return None, None
    sessions = open_backend(find_bundle(model.bundle), model.backend)
    sessions.close()
    return sessions.backend, sessions.reason


def _score_all(model: EvaluatedModel, dataset: Dataset, jobs: int) -> Iterator[SampleScore]:
    """Yield the scores in the order of the samples."""
    if jobs == 1:
        with ExitStack() as stack:
            segment = _open(model, stack)
            for sample in dataset:
                yield _score(segment, sample)
        return
    # Forking a process whose libraries hold threads and locks is not safe; spawned workers start clean.
    workers = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from map_ahead(workers, partial(_score_in_worker, model), dataset, ahead=_SAMPLES_AHEAD * jobs)
    finally:
        workers.shutdown(cancel_futures=True)


def _score(segment: Segment, sample: Sample) -> SampleScore:
    result = segment(sample)
    selectable = result.candidates.masks[result.candidates.kept]
    return SampleScore(
        overlap=overlap(result.mask, true_mask(sample), selectable),
        cues=sample.cues,
        matched=result.index is not None,
    )


def _score_in_worker(model: EvaluatedModel, sample: Sample) -> SampleScore:
    return _score(_open_in_worker(model), sample)


@cache
def _open_in_worker(model: EvaluatedModel) -> Segment:
    """Open the model once for a worker process; its sessions live as long as the process."""
    one_thread = dataclasses.replace(model.backend, threads=1)
    return _open(dataclasses.replace(model, backend=one_thread), ExitStack())


def _open(model: EvaluatedModel, stack: ExitStack) -> Segment:
    """Open the model; `stack` closes it."""
    if model.runtime == "torch":
        return _open_reference(model)
    bundle = find_bundle(model.bundle)
    check_trained(bundle, allow_random_weights=model.options.allow_random_weights)
    options = model.options.pipeline_options(bundle.spec)
    segmenter = stack.enter_context(segmenter_of(bundle, open_backend(bundle, model.backend), options))
    return lambda sample: segmenter.segment(segmenter.encode(sample.read()), sample.phrase)


def _open_reference(model: EvaluatedModel) -> Segment:
    with require_export(PURPOSE):
        import torch

        from refdiff.reference.pipeline import Reference
    torch.set_num_threads(_TORCH_THREADS)
    stack = load_miniature(PURPOSE)
    reference = Reference(stack=stack, options=model.options.pipeline_options(stack.spec))
    return lambda sample: reference.segment(sample.read(), sample.phrase)


def _metrics(scores: Sequence[SampleScore]) -> Metrics:
    return metrics([score.overlap for score in scores])


def _metrics_by_cue(scores: Sequence[SampleScore]) -> dict[str, Metrics]:
    overlaps: dict[str, list[Overlap]] = defaultdict(list)
    for score in scores:
        for cue in score.cues:
            overlaps[cue].append(score.overlap)
    return {cue: metrics(overlaps[cue]) for cue in sorted(overlaps)}
