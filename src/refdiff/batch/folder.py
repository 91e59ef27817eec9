"""Segment many samples: several phrases on one image, or on each image of a folder (`folder_run`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from refdiff.batch.distributed import RayOptions, map_on_ray
from refdiff.batch.folder_run import Encoded, FolderRun, Predict
from refdiff.batch.prediction import Prediction, predict_each
from refdiff.batch.result_store import ResultStore, open_result_store
from refdiff.batch.training_set import ExportCounts, check_exports
from refdiff.batch.work_list import Work, plan_work
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import bundle_cautions, check_trained, find_bundle
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.options import (
    DEFAULT_BACKEND,
    DEFAULT_RUN,
    BackendOptions,
    Options,
    RunOptions,
)
from refdiff.contracts.progress import Progress, silent
from refdiff.engines.factory import BackendSessions
from refdiff.errors import InputError
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime.batching import UNET_ROWS
from refdiff.runtime.image import read_image
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.segmentation import NOT_CALIBRATED


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Options of a run over a folder of images."""

    overwrite: bool = False
    """Reuse an output folder that was written with other settings; its results are replaced."""
    recursive: bool = False
    """Search the sub-folders of the image folder too."""
    coco: bool = False
    """Also write all results as one COCO file."""
    export: tuple[str, ...] = ()
    """Also write data sets to train on: "coco", "yolo-seg", "label-studio"."""
    ray: RayOptions | None = None
    """The Ray cluster that images are segmented on; None: this process segments them."""


DEFAULT_FOLDER = FolderOptions()


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The outcome of `segment_many`."""

    predictions: tuple[Prediction, ...]
    """In the order of the phrases; empty if they were written to a folder."""
    output: Path | None
    images: int
    """Images of the run, including those that failed."""
    answered: int
    """Phrases segmented by this run."""
    resumed: int
    """Phrases whose results an earlier run had written."""
    failed: int
    """Phrases without a result, because of `failures`."""
    matched: int
    """Results, new and resumed, with a mask."""
    failures: Mapping[str, str]
    """Image's name -> why some or all of its phrases have no result."""
    skipped: Mapping[str, tuple[str, ...]]
    """Reason -> names of the files and folders that were passed over."""
    exports: Mapping[str, ExportCounts]
    """Kind -> what a data set to train on contains."""
    model: str
    random_weights: bool
    cautions: tuple[str, ...]
    """Why any mask may be wrong; a record also has those of its phrase."""
    backend: str
    backend_reason: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        predictions = (
            {"answers": [each.to_json() for each in self.predictions]} if self.output is None else {}
        )
        return {
            **predictions,
            "output": None if self.output is None else str(self.output),
            "images": self.images,
            "answered": self.answered,
            "resumed": self.resumed,
            "failed": self.failed,
            "matched": self.matched,
            "failures": dict(self.failures),
            "skipped": {reason: list(names) for reason, names in self.skipped.items()},
            "exports": {kind: counts.to_json() for kind, counts in self.exports.items()},
            "model": self.model,
            "random_weights": self.random_weights,
            "cautions": list(self.cautions),
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "seconds": round(self.seconds, 2),
        }


def segment_many(
    bundle: Path | str,
    image: Path | str,
    phrases: Sequence[str] | Path,
    *,
    output: Path | str | None = None,
    folder: FolderOptions = DEFAULT_FOLDER,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    progress: Progress | None = None,
) -> BatchResult:
    """Segment what each phrase refers to in an image, or in each image of a folder.

    An image that fails is reported with the results of the others; a phrase that cannot be used is refused
    before any graph runs. An interrupted run resumes when it is repeated, and tries again what failed.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        image: an image file, or a folder of images.
        phrases: used with each image; or the path of a CSV file with the header `image,phrase`, whose images
            lie in the folder `image`.
        output: a folder for masks, overlays, records and a page of them (`result_store`); required for a
            folder of images. None: the predictions are returned instead.
        folder: which images are taken, and what is written.
        options: what is computed.
        backend: where and how the graphs run.
        progress: called with one line for each image.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: no image or phrase, a phrase or an option that cannot be used, an image that cannot be
            used and no output folder to report it in, or an output folder that cannot be written.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: the device failed, or no plan fits; results that were already written stay.
    """
    started, target = time.perf_counter(), None if output is None else Path(output)
    report = progress or silent
    check_exports(folder.export, target)
    plan = plan_work(Path(image), phrases, output=target, recursive=folder.recursive)
    opened = find_bundle(bundle, expect=options.expect)
    check_trained(opened, allow_random_weights=options.allow_random_weights)
    sessions = open_backend(opened, backend)
    with segmenter_of(opened, sessions, options.pipeline_options(opened.spec)) as segmenter:
        segmenter.check_phrases(list(dict.fromkeys(text for each in plan.items for text in each.phrases)))
        predict = _predictor(opened, segmenter, sessions, backend)
        calibrated = segmenter.options.key in opened.calibration().models
        if target is None:
            outcome = _answer(plan.items[0], predict, report)
        else:
            settings = _settings(opened, segmenter.options, sessions)
            with open_result_store(target, settings, overwrite=folder.overwrite) as store:
                run = FolderRun(store=store, predict=predict, report=report)
                if folder.ray is not None:
                    place = dataclasses.replace(backend, name=sessions.backend, threads=folder.ray.cpus)
                    open_worker = partial(_open_on_node, str(bundle), options, place, settings, store)
                    run.elsewhere = partial(
                        map_on_ray,
                        open_worker=open_worker,
                        where=folder.ray,
                        backend=sessions.backend,
                        report=report,
                    )
                title = f"{Path(image).name}: refdiff"
                outcome = run.complete(plan, title=title, coco=folder.coco, export=folder.export)
    return BatchResult(
        **outcome,
        output=target,
        images=len(plan.items),
        skipped=plan.skipped,
        model=opened.spec.name,
        random_weights=opened.manifest.random_seed is not None,
        cautions=(*bundle_cautions(opened), *(() if calibrated else (NOT_CALIBRATED,))),
        backend=sessions.backend,
        backend_reason=sessions.reason,
        seconds=time.perf_counter() - started,
    )


def _predictor(
    bundle: Bundle, segmenter: Segmenter, sessions: BackendSessions, backend: BackendOptions
) -> Predict:
    rows = backend.batch_size or UNET_ROWS
    return partial(predict_each, segmenter, bundle=bundle, sessions=sessions, batch_size=rows)


def _open_on_node(
    bundle: str, options: RunOptions, backend: BackendOptions, settings: Mapping[str, Any], store: ResultStore
) -> Callable[[Work], Encoded]:
    """Open the bundle on another machine, and refuse one that is not the caller's."""
    opened = find_bundle(bundle)
    sessions = open_backend(opened, backend)
    segmenter = segmenter_of(opened, sessions, options.pipeline_options(opened.spec))
    found = _settings(opened, segmenter.options, sessions)
    differing = [key for key in settings if found[key] != settings[key]]
    if differing:
        raise InputError(f"{bundle} has another {differing[0]} there; copy the same bundle to every node")
    predict = _predictor(opened, segmenter, sessions, backend)
    return FolderRun(store=store, predict=predict, report=silent).encode


def _answer(work: Work, predict: Predict, report: Progress) -> dict[str, Any]:
    """Return the predictions of one image, and the counts."""
    report(f"segmenting {work.path}")
    predictions = tuple(predict(read_image(work.path), work.phrases))
    return {
        "predictions": predictions,
        "answered": len(predictions),
        "resumed": 0,
        "failed": 0,
        "matched": sum(each.matched for each in predictions),
        "failures": {},
        "exports": {},
    }


def _settings(bundle: Bundle, options: Options, sessions: BackendSessions) -> dict[str, Any]:
    """Return everything that a result depends on except image and phrase."""
    return {
        "format": 4,
        "refdiff": refdiff_version(),
        "model": bundle.spec.name,
        "precision": bundle.manifest.precision,
        "bundle": bundle.manifest.sha256,
        "options": dataclasses.asdict(options),
        "backend": sessions.backend,
    }
