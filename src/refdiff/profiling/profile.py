"""`profile`: where the milliseconds go, from the image's bytes to the mask.

One process, in this order: a cold start, rounds to warm up, measured rounds, a round in which memory is
sampled, and, if requested, every graph in other back-ends and a pass in which every layer is recorded.
Percentiles are of the measured rounds alone.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import MINIATURE_NAME, find_bundle
from refdiff.contracts.manifest import MANIFEST_NAME, refdiff_version
from refdiff.contracts.options import (
    DEFAULT_BACKEND,
    DEFAULT_RUN,
    BackendOptions,
    Options,
    RunOptions,
)
from refdiff.contracts.progress import Progress, silent
from refdiff.data.folder import image_sample
from refdiff.data.sample import Sample, check_phrases, image_hashes
from refdiff.data.synthetic import DEMO_SEEDS, demo_samples, encoded
from refdiff.diagnostics.gather import read_host, read_jetson
from refdiff.diagnostics.sources import installed_version, this_machine
from refdiff.engines.factory import BackendSessions
from refdiff.engines.trt.device import find_device
from refdiff.engines.trt.open import TENSORRT
from refdiff.errors import InputError, MissingDependencyError
from refdiff.loading import open_backend, segmenter_of
from refdiff.profiling.compare_backends import BackendComparison, require_polygraphy
from refdiff.profiling.compare_backends import compare_backends as compare_graphs
from refdiff.profiling.macs import MacCounter, MatrixProduct, PeakThroughput
from refdiff.profiling.profiled_run import ProfiledRun
from refdiff.profiling.report import GraphLayers, GraphRow, ProfileReport, graph_rows, stage_rows
from refdiff.profiling.sensors import Sensors, read_memory
from refdiff.profiling.spans import CLOCK, Stopwatch, TimedSessions
from refdiff.runtime.tokenizer import Tokenizer

_LAYER_ROUNDS = 2
_SCENES = 3
"""Scenes of a round if their number is not given: a tall, a wide and a square one."""
_PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "cuda-python")


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Options of a profile: how often it measures, and what in addition."""

    runs: int = 10
    """Measured rounds; each runs every sample once."""
    warmup: int = 1
    """Rounds before them, after the cold start."""
    layers: bool = False
    """Record every layer's time in a pass of its own."""
    compare_backends: bool = False
    """Run every graph in every available back-end, on the golden feeds."""


DEFAULT_PROFILE = ProfileOptions()


def profile(
    bundle: Path | str,
    *,
    samples: Sequence[Sample] | None = None,
    measure: ProfileOptions = DEFAULT_PROFILE,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    root: Path = Path("/"),
    progress: Progress | None = None,
) -> ProfileReport:
    """Measure where a bundle's time goes. Random weights will do: time does not depend on them.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        samples: from `profile_samples`; None takes three scenes, for bundles of the miniature.
        measure: how often, and what to measure in addition to the pipeline's own times.
        options: what is computed.
        backend: where and how the graphs run.
        root: where the machine's own files begin.
        progress: called with one line at each step.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: an unknown option, no runs, or no samples for a bundle that the scenes do not fit.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing, or Polygraphy where
            back-ends are compared.
        EngineError: a graph failed.
    """
    if measure.runs < 1 or measure.warmup < 0:
        raise InputError(f"got {measure.runs} runs and {measure.warmup} to warm up, expected 1 and 0 or more")
    if measure.compare_backends:
        require_polygraphy()
    progress, watch, before = progress or silent, Stopwatch(), read_memory()
    progress("opening the bundle")
    with watch.span("step", "open and verify the bundle"):
        opened = find_bundle(bundle, expect=options.expect)
    inputs = profile_samples(opened) if samples is None else samples
    # Each sample is segmented many times, and must cost what a phrase costs that has not been seen before.
    pipeline = dataclasses.replace(options.pipeline_options(opened.spec), cache_texts=False)
    with watch.span("step", "start the back-end"):
        sessions = open_backend(opened, backend, "runs")
    with segmenter_of(opened, TimedSessions(sessions, watch), pipeline, watch) as segmenter:
        run = ProfiledRun(
            segmenter=segmenter, watch=watch, inputs=inputs, sensors=Sensors(root), progress=progress
        )
        run.run_cold()
        product, how = _matrix_product(sessions.backend, backend.threads)
        run.run(measure.runs, measure.warmup, product)
        memory = run.sample_memory(before)
        backends: tuple[BackendComparison, ...] = ()
        if measure.compare_backends:
            counts = {"runs": measure.runs, "warmup": max(measure.warmup, 1)}
            backends = compare_graphs(opened, sessions, threads=backend.threads, progress=progress, **counts)
    count_macs, peak = MacCounter(opened), PeakThroughput.of(run.products, how)
    graphs = graph_rows(run.samples, count_macs=count_macs, peak_gflops=peak.gflops, memory=run.graph_memory)
    return ProfileReport(
        path=opened.path,
        bundle=_bundle(opened),
        options=_options(pipeline, sessions, backend, inputs),
        machine=_machine(root),
        versions=_versions(),
        backend_reason=sessions.reason,
        clocks=_clocks(sessions.backend),
        cold=run.cold,
        samples=tuple(run.samples),
        stages=stage_rows(run.samples),
        graphs=graphs,
        peak=peak,
        macs_problem=count_macs.problem,
        memory=memory,
        start=run.start,
        end=run.end,
        layers=_layers(opened, backend, pipeline, inputs, graphs, progress) if measure.layers else (),
        backends=backends,
        spans=tuple(run.spans),
    )


def _matrix_product(backend: str, threads: int | None) -> tuple[MatrixProduct | None, str]:
    """Open the matrix product; return it with what it is, or None with why there is none."""
    try:
        product = MatrixProduct(backend, threads)
    except MissingDependencyError as error:
        return None, str(error)
    return product, product.how


def profile_samples(
    bundle: Bundle,
    *,
    image: Path | str | None = None,
    phrase: str | None = None,
    scenes: int | None = None,
) -> Sequence[Sample]:
    """Choose the samples of one round: image files' bytes, because decoding is part of the work.

    Args:
        bundle: what will be profiled.
        image: an image of your own; None takes scenes of the miniature.
        phrase: what to find in it.
        scenes: number of scenes; None: three.

    Raises:
        InputError: an image or a phrase alone, one that cannot be used, or a bundle that the scenes do not
            fit.
    """
    if image is not None and phrase is not None and scenes is None:
        sample = image_sample(Path(image), phrase)
        check_phrases([sample], Tokenizer(bundle.tokenizer_json(), bundle.spec.context_length))
        sample.read()  # an image that cannot be used is refused before anything is measured
        return [sample]
    if image is not None or phrase is not None:
        lone = "--scenes too" if scenes is not None else "no --phrase" if phrase is None else "no --image"
        raise InputError(f"your own image needs --image and --phrase and nothing else, got {lone}")
    if bundle.spec.name.split("-")[0] != MINIATURE_NAME:
        raise InputError(
            f"the built-in scenes are for the miniature, {bundle.path} is of {bundle.spec.name}; "
            "name an image and a phrase: --image photo.jpg --phrase 'the red mug'"
        )
    count = _SCENES if scenes is None else scenes
    if not 1 <= count <= len(DEMO_SEEDS):
        raise InputError(f"got {count} scenes, expected 1 to {len(DEMO_SEEDS)}")
    return [encoded(sample) for sample in demo_samples(count)]


def _input_json(sample: Sample) -> dict[str, Any]:
    """Describe a sample; the same image and phrase give the same."""
    height, width = sample.read().shape[:2]
    return {
        "name": sample.id,
        "sha256": image_hashes([sample])[0],
        "size": {"width": width, "height": height},
        "phrase": sample.phrase,
    }


def _layers(
    bundle: Bundle,
    backend: BackendOptions,
    options: Options,
    inputs: Sequence[Sample],
    graphs: Sequence[GraphRow],
    progress: Progress,
) -> tuple[GraphLayers, ...]:
    """Record layers in a pass of its own, because recording slows them down."""
    progress("layers")
    sessions = open_backend(bundle, backend, "layers")
    with segmenter_of(bundle, sessions, options) as segmenter:
        for sample in (*inputs,) * _LAYER_ROUNDS:
            segmenter.segment(segmenter.encode(sample.fetch()), sample.phrase)
        times = {row.graph: tuple(sessions.open(row.graph).timings().layers) for row in graphs}
    return tuple(GraphLayers(graph=name, layers=layers) for name, layers in times.items() if layers)


def _bundle(bundle: Bundle) -> dict[str, Any]:
    return {
        "model": bundle.spec.name,
        "precision": bundle.manifest.precision,
        "image_size": bundle.spec.diffusion.image_size,
        "manifest_sha256": hash_file(bundle.path / MANIFEST_NAME),
    }


def _options(
    options: Options,
    sessions: BackendSessions,
    backend: BackendOptions,
    inputs: Sequence[Sample],
) -> dict[str, Any]:
    return {
        "variant": options.variant,
        "mode": options.mode,
        "backend": sessions.backend,
        "threads": backend.threads,
        "memory": backend.memory,
        "questions": [_input_json(sample) for sample in inputs],
    }


def _clocks(backend: str) -> Mapping[str, str | None]:
    return {
        "stages and graphs": f"{CLOCK}, around the host's call",
        "device": "CUDA events around the enqueued run" if backend in TENSORRT else None,
        "throttling": "read before and after every question",
    }


def _machine(root: Path) -> dict[str, Any]:
    """Return what distinguishes machines, and this one's power mode."""
    sources = dataclasses.replace(this_machine(), root=root)
    host, jetson, device = read_host(sources), read_jetson(sources), find_device()
    return {
        "model": None if jetson is None else jetson.model,
        "processor": host.processor,
        "cores": host.cores,
        "architecture": host.arch,
        "memory_bytes": host.memory_total,
        "power_mode": None if jetson is None else jetson.power_mode,
        "gpu": None if device is None else device.name,
    }


def _versions() -> dict[str, str]:
    own = {"refdiff": refdiff_version(), "python": platform.python_version()}
    return own | {name: version for name in _PACKAGES if (version := installed_version(name)) is not None}
