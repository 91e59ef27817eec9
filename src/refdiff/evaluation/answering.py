"""The model under evaluation: images and sentences in, records out, in one process or in many."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from refdiff.batch.distributed import RayOptions, map_on_ray
from refdiff.batch.prefetch import map_ahead
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import BUILT_IN, MINIATURE_NAME, MINIATURES, check_trained, find_bundle
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.contracts.progress import Progress
from refdiff.data.sample import Sample
from refdiff.errors import InputError
from refdiff.evaluation.records import SentenceRecord, records_of
from refdiff.loading import open_backend, segmenter_of
from refdiff.models.choice import load_miniature

RUNTIMES = ("torch", "onnx")
"""The torch reference, and the bundle's graphs."""

PURPOSE = "the torch reference"

_TORCH_THREADS = 1
"""Threads of a process: the modules are too small to gain from more, and processes share the cores."""

_PICTURES_AHEAD = 2
"""Images for each worker process that are submitted before their records are taken."""


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
class Answers:
    """The records of one image, and the time the pipeline took for them."""

    records: tuple[SentenceRecord, ...]
    seconds: float
    """From reading the image to its last mask."""


Answer = Callable[[Sequence[Sample]], Answers]


def find_model(model: EvaluatedModel) -> Bundle | None:
    """Check the options, and return the verified bundle; None for the reference."""
    if model.runtime not in RUNTIMES:
        raise InputError(f"unknown runtime {model.runtime!r}; choose one of: {', '.join(RUNTIMES)}")
    if model.runtime == "torch":
        if model.options.expect is not None:
            raise InputError("got an expected bundle, but the torch reference opens none; leave --expect out")
        if model.bundle not in BUILT_IN:
            raise InputError(
                "the torch reference exists for the built-in models only, "
                f"got {model.bundle}; name one of: {', '.join(MINIATURES)}"
            )
        if model.backend.name != "auto":
            raise InputError(
                f"back-end {model.backend.name!r} runs graphs, not the torch reference; leave it out"
            )
        return None
    bundle = find_bundle(model.bundle, expect=model.options.expect)
    check_trained(bundle, allow_random_weights=model.options.allow_random_weights)
    return bundle


def choose_backend(model: EvaluatedModel, bundle: Bundle | None) -> tuple[str, str] | tuple[None, None]:
    """Return the back-end that will run and why; no graph is loaded."""
    if bundle is None:
        return None, None
    sessions = open_backend(bundle, model.backend)
    sessions.close()
    return sessions.backend, sessions.reason


def model_settings(model: EvaluatedModel, backend: str | None, bundle: Bundle | None) -> dict[str, Any]:
    """Return everything that a record depends on except its sample.

    The hash that a bundle was expected to have is left out: that of the bundle is there.
    """
    settings = {
        "format": 3,
        "refdiff": refdiff_version(),
        "runtime": model.runtime,
        "backend": backend,
        "options": dataclasses.asdict(dataclasses.replace(model.options, expect=None)),
    }
    if bundle is None:
        return settings | {"model": _miniature_of(model)}
    return {
        **settings,
        "model": bundle.spec.name,
        "precision": bundle.manifest.precision,
        "bundle_sha256": bundle.manifest.sha256,
    }


def answer_all(
    model: EvaluatedModel,
    bundle: Bundle | None,
    pictures: Iterable[tuple[Sample, ...]],
    jobs: int | RayOptions,
    settings: Mapping[str, Any],
    report: Progress,
) -> Iterator[Answers]:
    """Yield the answers in the order of the images, or on Ray in the order in which they arrive.

    Args:
        model: what answers.
        bundle: of `find_model`; other processes find it again.
        pictures: the samples of each image.
        jobs: number of processes, or a Ray cluster.
        settings: of `model_settings`; each node of a cluster has to have the same.
        report: called when a worker of a cluster is lost.
    """
    if isinstance(jobs, RayOptions):
        backend = settings["backend"]
        place = dataclasses.replace(model.backend, name=backend or "auto", threads=jobs.cpus)
        open_worker = partial(_open_on_node, dataclasses.replace(model, backend=place), settings)
        yield from map_on_ray(pictures, open_worker, jobs, backend=backend, report=report)
        return
    if jobs == 1:
        with ExitStack() as stack:
            answer = open_model(model, bundle, stack)
            for picture in pictures:
                yield answer(picture)
        return
    # Forking a process whose libraries hold threads and locks is not safe; spawned workers start clean.
    workers = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from map_ahead(
            workers, partial(_answer_in_worker, model), pictures, ahead=_PICTURES_AHEAD * jobs
        )
    finally:
        workers.shutdown(cancel_futures=True)


def _answer_in_worker(model: EvaluatedModel, picture: tuple[Sample, ...]) -> Answers:
    return _open_in_worker(model)(picture)


@cache
def _open_in_worker(model: EvaluatedModel) -> Answer:
    """Open the model once for a worker process; its sessions live as long as the process."""
    one_thread = dataclasses.replace(model.backend, threads=1)
    return open_model(dataclasses.replace(model, backend=one_thread), find_model(model), ExitStack())


def _open_on_node(model: EvaluatedModel, settings: Mapping[str, Any]) -> Answer:
    """Open the model on another machine, and refuse a bundle or a version that is not the caller's."""
    bundle = find_model(model)
    found = model_settings(model, settings["backend"], bundle)
    differing = [key for key in settings if found.get(key) != settings[key]]
    if differing:
        raise InputError(
            f"{model.bundle} has another {differing[0]} there; copy the same bundle to every node"
        )
    return open_model(model, bundle, ExitStack())


def open_model(model: EvaluatedModel, bundle: Bundle | None, stack: ExitStack) -> Answer:
    """Open the model; `stack` closes it."""
    if bundle is None:
        return _open_reference(model)
    options = model.options.pipeline_options(bundle.spec)
    segmenter = stack.enter_context(segmenter_of(bundle, open_backend(bundle, model.backend), options))

    def answer(picture: Sequence[Sample]) -> Answers:
        start = time.perf_counter()
        pixels = picture[0].read()
        results = segmenter.segment_many(segmenter.encode(pixels), [sample.phrase for sample in picture])
        seconds = time.perf_counter() - start
        return Answers(records=records_of(picture, results, options), seconds=seconds)

    return answer


def _miniature_of(model: EvaluatedModel) -> str:
    return model.bundle if model.bundle in MINIATURES else MINIATURE_NAME  # it has another name


def _open_reference(model: EvaluatedModel) -> Answer:
    with require_export(PURPOSE):
        import torch

        from refdiff.reference.pipeline import Reference
    torch.set_num_threads(_TORCH_THREADS)
    stack = load_miniature(PURPOSE, _miniature_of(model))
    options = model.options.pipeline_options(stack.spec)
    reference = Reference(stack=stack, options=options)

    def answer(picture: Sequence[Sample]) -> Answers:
        start = time.perf_counter()
        pixels = picture[0].read()
        results = [reference.segment(pixels, sample.phrase) for sample in picture]
        seconds = time.perf_counter() - start
        return Answers(records=records_of(picture, results, options), seconds=seconds)

    return answer
