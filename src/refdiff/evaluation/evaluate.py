"""`evaluate`: the miniature's metrics on held-out scenes, by the torch reference or by the runtime."""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.accuracy.metrics import Metrics, Overlap, metrics, overlap
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import options_for
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.results import Segmentation
from refdiff.data.sample import true_mask
from refdiff.data.synthetic import HELD_OUT_FROM, scene_sample
from refdiff.engines.factory import open_sessions
from refdiff.errors import InputError
from refdiff.loading import segmenter_of
from refdiff.models.choice import load_miniature

COMPUTES = ("torch", "onnx")

PURPOSE = "the torch reference"

_REPORT_EVERY = 10
_TORCH_THREADS = 1
"""Per process: the modules are too small to gain from more, and processes share the cores."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Who answers, and how; it travels to worker processes."""

    backend: str
    """"torch" or "onnx"."""
    variant: str
    mode: str
    bundle: str


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The metrics of one examination."""

    examination: Examination
    runtime_backend: str | None
    """What the runtime ran on; None for the reference."""
    runtime_backend_reason: str | None
    first_seed: int
    metrics: Metrics
    by_cue: dict[str, Metrics]
    """What the phrase uses (kind, colour, size, place, relation) -> the metrics of such phrases."""
    unmatched: int
    """Sentences answered with "nothing matches"."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        asked = self.examination
        return {
            "backend": asked.backend,
            "runtime_backend": self.runtime_backend,
            "runtime_backend_reason": self.runtime_backend_reason,
            "bundle": asked.bundle if asked.backend == "onnx" else None,
            "variant": asked.variant,
            "mode": asked.mode,
            "seed": self.first_seed,
            **_metrics_json(self.metrics),
            "unmatched": self.unmatched,
            "by_cue": {cue: _metrics_json(each) for cue, each in self.by_cue.items()},
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, kw_only=True)
class _Marked:
    """One question, answered and measured."""

    overlap: Overlap
    cues: frozenset[str]
    matched: bool


Respond = Callable[[NDArray[np.uint8], str], Segmentation]


def evaluate(
    *,
    count: int = 500,
    seed: int = HELD_OUT_FROM,
    mode: str = "full",
    backend: str = "onnx",
    variant: str = "edge",
    bundle: Path | str = "mini",
    jobs: int = 1,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Ask one question per held-out scene and measure the answers.

    Args:
        count: scenes; one without a phrase is passed over.
        seed: of the first scene.
        mode: as in `load`.
        backend: "torch" for the reference, "onnx" for the runtime.
        variant: as in `load`; "paper" needs the reference.
        bundle: what the runtime runs.
        jobs: processes.
        progress: told one line now and then.

    Raises:
        InputError: an option cannot be used.
        BundleError: the bundle is missing, damaged or newer.
        MissingDependencyError: torch or the back-end's package is not installed.
    """
    if count < 1 or jobs < 1 or seed < 0:
        raise InputError(f"got count {count}, jobs {jobs}, seed {seed}; expected 1, 1 and 0 or more")
    if backend not in COMPUTES:
        raise InputError(f"unknown back-end {backend!r}; choose one of: {', '.join(COMPUTES)}")
    examination = Examination(backend=backend, variant=variant, mode=mode, bundle=str(bundle))
    tell, start = progress or silent, time.perf_counter()
    chosen, reason = _choice(examination)
    if chosen is not None:
        tell(f"back-end {chosen}: {reason}")
    marked: list[_Marked] = []
    for done, mark in enumerate(_mark_all(examination, range(seed, seed + count), jobs), start=1):
        marked += [mark] if mark is not None else []
        if done % _REPORT_EVERY == 0 or done == count:
            tell(f"{done}/{count} scenes, mIoU {metrics([each.overlap for each in marked]).miou:.3f}")
    return EvaluationReport(
        examination=examination,
        runtime_backend=chosen,
        runtime_backend_reason=reason,
        first_seed=seed,
        metrics=metrics([each.overlap for each in marked]),
        by_cue=_by_cue(marked),
        unmatched=sum(not each.matched for each in marked),
        seconds=time.perf_counter() - start,
    )


def _choice(examination: Examination) -> tuple[str, str] | tuple[None, None]:
    """The back-end that the runtime will choose, and why; no graph is loaded."""
    if examination.backend == "torch":
        return None, None
    sessions = open_sessions(find_bundle(examination.bundle))
    sessions.close()
    return sessions.backend, sessions.reason


def _mark_all(examination: Examination, seeds: Sequence[int], jobs: int) -> Iterator[_Marked | None]:
    """In the order of the seeds."""
    if jobs == 1:
        with ExitStack() as stack:
            respond = _respondent(examination, stack)
            for seed in seeds:
                yield _mark(respond, seed)
        return
    # Forking a process whose libraries hold threads and locks is not safe; spawned workers start clean.
    workers = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from workers.map(_mark_in_worker, [examination] * len(seeds), seeds)
    finally:
        workers.shutdown(cancel_futures=True)


def _mark(respond: Respond, seed: int) -> _Marked | None:
    sample = scene_sample(seed)
    if sample is None:
        return None
    answer = respond(sample.read(), sample.phrase)
    choosable = answer.candidates.masks[answer.candidates.kept]
    return _Marked(
        overlap=overlap(answer.mask, true_mask(sample), choosable),
        cues=sample.cues,
        matched=answer.index is not None,
    )


def _mark_in_worker(examination: Examination, seed: int) -> _Marked | None:
    return _mark(_worker_respondent(examination), seed)


@cache
def _worker_respondent(examination: Examination) -> Respond:
    """Made once per worker; its sessions live as long as the process."""
    return _respondent(examination, ExitStack(), threads=1)


def _respondent(examination: Examination, stack: ExitStack, threads: int | None = None) -> Respond:
    """Whoever answers, opened; `stack` closes it."""
    if examination.backend == "torch":
        return _reference(examination)
    bundle = find_bundle(examination.bundle)
    check_trained(bundle, allow_random_weights=False)
    options = options_for(bundle.spec, variant=examination.variant, mode=examination.mode)
    sessions = open_sessions(bundle, threads=threads)
    segmenter = stack.enter_context(segmenter_of(bundle, sessions, options))
    return lambda image, phrase: segmenter.segment(segmenter.encode(image), phrase)


def _reference(examination: Examination) -> Respond:
    with require_export(PURPOSE):
        import torch

        from refdiff.reference.pipeline import Reference
    torch.set_num_threads(_TORCH_THREADS)
    stack = load_miniature(PURPOSE)
    options = options_for(stack.spec, variant=examination.variant, mode=examination.mode)
    return Reference(stack=stack, options=options).segment


def _by_cue(marked: Sequence[_Marked]) -> dict[str, Metrics]:
    overlaps: dict[str, list[Overlap]] = defaultdict(list)
    for each in marked:
        for cue in each.cues:
            overlaps[cue].append(each.overlap)
    return {cue: metrics(overlaps[cue]) for cue in sorted(overlaps)}


def _metrics_json(measured: Metrics) -> dict[str, Any]:
    return {
        "count": measured.count,
        "miou": measured.miou,
        "oiou": measured.oiou,
        **{f"pr@{level}": share for level, share in measured.precision_at.items()},
        "oracle_miou": measured.oracle_miou,
    }
