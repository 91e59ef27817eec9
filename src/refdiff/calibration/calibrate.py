"""The verb `calibrate`: run the pipeline on samples and record everything it feeds its graphs.

The recorded feeds are those of a device: with the steps, guidance branches, batches and padding of the
variants. Ranges, audits and the comparison of precisions read them (`open_feeds`).
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.calibration.feeds import FeedStore, Run
from refdiff.calibration.recording import FeedRecorder, spread_evenly
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, BackendOptions, Options, RunOptions
from refdiff.contracts.progress import Progress, Step, silent
from refdiff.contracts.session import Array
from refdiff.data.folder import check_images, csv_dataset
from refdiff.data.sample import Dataset, Sample, check_phrases, image_hashes
from refdiff.data.synthetic import CALIBRATION_FROM, calibration_scenes
from refdiff.engines.factory import BackendSessions
from refdiff.errors import InputError
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.tokenizer import Tokenizer

CALIBRATED_RUNS = (RunOptions(variant="official"), RunOptions(variant="edge"))

SCENES = 32
"""Default number of scenes of a recording."""

AD_HOC_SCENES = 8
"""Number of scenes that are recorded when a verb needs feeds and none are given."""

MOST_RUNS = 4
"""Runs of one graph that are kept per sample and variant, evenly spread: every pass of the UNet, but only
some of SAM's sixteen decoder batches per image."""


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """The result of a recording."""

    feeds: Path
    """The recording's folder."""
    bundle: Path
    model: str
    backend: str
    backend_reason: str
    variants: tuple[str, ...]
    mode: str
    new: int
    """Samples that were recorded now."""
    resumed: int
    """Samples that an earlier run of the command had recorded."""
    pictures: int
    graphs: Mapping[str, int]
    """Graph -> number of its records; those of `unet_taps` count for `unet` too."""
    size_bytes: int
    seconds: float
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            **dataclasses.asdict(self),
            "feeds": str(self.feeds),
            "bundle": str(self.bundle),
            "variants": list(self.variants),
            "graphs": dict(self.graphs),
            "seconds": round(self.seconds, 2),
            "warnings": list(self.warnings),
        }


def calibrate(
    bundle: Path | str,
    dataset: Dataset | None = None,
    *,
    output: Path | str,
    options: Sequence[RunOptions] = CALIBRATED_RUNS,
    backend: BackendOptions = DEFAULT_BACKEND,
    most_runs: int | None = MOST_RUNS,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Record what the pipeline feeds its graphs.

    An interrupted recording resumes when the call is repeated.

    Args:
        bundle: the folder of an fp32 bundle, or "mini" for the built-in one.
        dataset: what the pipeline runs on; None takes 32 scenes of the miniature that are used neither for
            training nor for evaluation.
        output: the recording's folder.
        options: what is computed, one value for each variant that each sample is run in.
        backend: where and how the graphs run.
        most_runs: runs of one graph to keep per sample and variant, evenly spread; None keeps all.
        overwrite: replace an existing recording.
        progress: receives one line per sample.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: the bundle is not in fp32, a phrase cannot be used, an option is unknown, or the folder
            holds a recording of another model or other settings.
        MissingDependencyError: the back-end's package is not installed.
        EngineError: a graph failed; samples recorded before it stay.
    """
    start, progress, opened = time.perf_counter(), progress or silent, find_bundle(bundle)
    _check(opened, options, most_runs)
    progress("reading the samples")
    dataset = calibration_dataset() if dataset is None else dataset
    samples = tuple(dataset)
    check_phrases(samples, Tokenizer(opened.tokenizer_json(), opened.spec.context_length))
    pipelines = {  # without a text cache, what a sample feeds its graphs depends on no other sample
        each.variant: dataclasses.replace(each.pipeline_options(opened.spec), cache_texts=False)
        for each in options
    }
    with ExitStack() as stack:
        sessions = open_backend(opened, backend)
        recorder = FeedRecorder(sessions, most=most_runs)
        stack.callback(recorder.close)
        segmenters = {name: segmenter_of(opened, recorder, each) for name, each in pipelines.items()}
        store = FeedStore.start(
            Path(output),
            model=opened.spec.name,
            sources=opened.manifest.sources,
            settings=_settings(dataset, pipelines, sessions, most_runs),
            planned=len(samples),
            overwrite=overwrite,
        )
        resumed = len(store.finished)
        _record(store, samples, segmenters, recorder, progress)
    images_seen = len(set(image_hashes(samples)))
    return CalibrationReport(
        feeds=store.folder,
        bundle=opened.path,
        model=opened.spec.name,
        backend=sessions.backend,
        backend_reason=sessions.reason,
        variants=tuple(pipelines),
        mode=options[0].mode,
        new=len(samples) - resumed,
        resumed=resumed,
        pictures=images_seen,
        graphs={name: len(store.entries(name)) for name in GRAPHS},
        size_bytes=store.size_bytes,
        seconds=time.perf_counter() - start,
        warnings=tuple(_warnings(opened, images_seen)),
    )


def open_feeds(folder: Path | str, bundle: Bundle) -> FeedStore:
    """Open a finished recording to feed a bundle: the recorded one, or the same in another precision.

    Raises:
        InputError: there is no recording, or it is damaged, unfinished or of another model.
    """
    return FeedStore.open(Path(folder), model=bundle.spec.name, sources=bundle.manifest.sources)


@contextmanager
def feeds_of(bundle: Bundle, folder: Path | str | None, progress: Progress) -> Iterator[FeedStore]:
    """Open a finished recording for this bundle; without a folder, record some scenes temporarily.

    Raises:
        InputError: see `open_feeds`.
    """
    if folder is not None:
        yield open_feeds(folder, bundle)
        return
    with tempfile.TemporaryDirectory() as scratch:
        progress(f"recording feeds of {AD_HOC_SCENES} scenes")
        calibrate(
            bundle.path, calibration_scenes(AD_HOC_SCENES), output=Path(scratch) / "feeds", progress=progress
        )
        yield open_feeds(Path(scratch) / "feeds", bundle)


def evenly_spread_records(store: FeedStore, graph: str, most: int) -> list[Mapping[str, Array]]:
    """Return at most `most` records of a graph, evenly spread over all there are."""
    records = store.records(graph)
    return [records[index] for index in sorted(spread_evenly(len(records), most))]


def _check(bundle: Bundle, options: Sequence[RunOptions], most_runs: int | None) -> None:
    if bundle.manifest.precision != "fp32":
        raise InputError(
            f"{bundle.path} is in {bundle.manifest.precision}, expected fp32, in which ranges are measured; "
            "calibrate the bundle it was made from"
        )
    if not options:
        raise InputError("got no variant, expected one or more, such as official and edge")
    if most_runs is not None and most_runs < 1:
        raise InputError(f"got at most {most_runs} runs of a graph, expected 1 or more")


def calibration_dataset(
    images: Path | str | None = None,
    phrases: Path | str | None = None,
    count: int | None = None,
    seed: int | None = None,
) -> Dataset:
    """Return images with their phrases, or scenes of the miniature.

    Args:
        images: a folder of images; None takes scenes of the miniature.
        phrases: a CSV file with the header `image,phrase`; needed with `images`.
        count: scenes, 32 if None, or phrases, all if None.
        seed: seed of the first scene; None: one that is used neither for training nor for evaluation.

    Raises:
        InputError: images or phrases cannot be used or do not match, or scenes are reserved for evaluation.
    """
    if images is None and phrases is None:
        return calibration_scenes(
            SCENES if count is None else count, CALIBRATION_FROM if seed is None else seed
        )
    if images is None or phrases is None:
        given, lacking = ("--images", "--phrases") if phrases is None else ("--phrases", "--images")
        raise InputError(f"got {given} without {lacking}, expected both, or none for the miniature's scenes")
    if seed is not None:
        raise InputError(f"got --seed {seed} with --images: it is of the miniature's scenes; leave it out")
    dataset = csv_dataset(Path(images), Path(phrases), count, require_all_images=True)
    check_images(dataset)
    return dataset


def _settings(
    dataset: Dataset, options: Mapping[str, Options], sessions: BackendSessions, most_runs: int | None
) -> dict[str, Any]:
    """Return everything that decides what is recorded."""
    return {
        "questions": dataset.fingerprint,
        "variants": {name: dataclasses.asdict(each) for name, each in options.items()},
        "backend": sessions.backend,
        "most_runs": most_runs,
    }


def _record(
    store: FeedStore,
    samples: Sequence[Sample],
    segmenters: Mapping[str, Segmenter],
    recorder: FeedRecorder,
    progress: Progress,
) -> None:
    finished = frozenset(store.finished)
    for number, sample in enumerate(samples, start=1):
        if sample.id not in finished:
            line = f"sample {number}/{len(samples)}: {sample.phrase}"
            progress(Step(line, done=number - 1, total=len(samples), unit="samples"))
            store.add(sample.id, {name: _runs(each, sample, recorder) for name, each in segmenters.items()})


def _runs(segmenter: Segmenter, sample: Sample, recorder: FeedRecorder) -> tuple[Run, ...]:
    segmenter.segment(segmenter.encode(sample.read()), sample.phrase)
    return recorder.take()


def _warnings(bundle: Bundle, images: int) -> list[str]:
    warnings = []
    if bundle.manifest.random_seed is not None:
        warnings.append(
            "the weights are random: ranges of these feeds measure nothing, they are for trying out the tools"
        )
    if images == 1:
        warnings.append("one image only: ranges taken from it may not hold for others; give more")
    return warnings
