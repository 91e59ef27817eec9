"""Segment many samples: several phrases on one image, or on each image of a folder.

Images are read ahead and predictions are written in the background while the graphs run (`prefetch`). What a
folder holds of an earlier, interrupted run is reused (`result_store`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.batch.prediction import Prediction, predict_each
from refdiff.batch.prefetch import BackgroundWriter, prefetch
from refdiff.batch.result_store import ResultStore, check_result_folder, open_result_store
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
from refdiff.contracts.results import NOT_CALIBRATED
from refdiff.data.folder import csv_dataset, folder_dataset, phrases_by_file
from refdiff.engines.factory import BackendSessions
from refdiff.errors import EngineError, InputError
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime.batching import UNET_ROWS
from refdiff.runtime.image import read_image

IMAGES_AHEAD = 1
"""Images that are read while another is segmented: reading one takes less time than its graphs."""

WRITES_PENDING = 4
"""Predictions that may wait to be written, an image and a full-size mask each."""


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The outcome of `segment_many`."""

    predictions: tuple[Prediction, ...]
    """In the order of the phrases; empty if they were written to a folder."""
    output: Path | None
    images: int
    new: int
    """Phrases segmented by this run."""
    resumed: int
    """Phrases whose results an earlier run had written."""
    matched: int
    """Results, new and resumed, with a mask."""
    failures: Mapping[str, str]
    """Image file's name -> why it could not be used."""
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
            "pictures": self.images,
            "new": self.new,
            "resumed": self.resumed,
            "matched": self.matched,
            "failures": dict(self.failures),
            "model": self.model,
            "random_weights": self.random_weights,
            "cautions": list(self.cautions),
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, kw_only=True)
class _Work:
    """An image file, its phrases, and which of them have no result yet."""

    path: Path
    phrases: tuple[str, ...]
    sha256: str = ""
    missing: tuple[str, ...] = ()
    pixels: NDArray[np.uint8] | None = None
    """[y, x, 3] RGB; None if no phrase is missing, or the image cannot be used."""
    fault: str | None = None
    """Reason why the image cannot be used."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name


Predict = Callable[[NDArray[np.uint8], Sequence[str]], Iterator[Prediction]]


def segment_many(
    bundle: Path | str,
    image: Path | str,
    phrases: Sequence[str] | Path,
    *,
    output: Path | str | None = None,
    overwrite: bool = False,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    progress: Progress | None = None,
) -> BatchResult:
    """Segment what each phrase refers to in an image, or in each image of a folder.

    An image that cannot be used is reported with the results of the others; a phrase that cannot be used is
    refused before any graph runs. An interrupted run resumes when it is repeated.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        image: an image file, or a folder of images.
        phrases: used with each image; or the path of a CSV file with the header `image,phrase`, whose images
            lie in the folder `image`.
        output: a folder for masks, overlays and records; required for a folder of images. None: the
            predictions are returned instead.
        overwrite: reuse an output folder that was written with other settings; its results are replaced.
        options: what is computed.
        backend: where and how the graphs run.
        progress: called with one line for each image.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: no image or phrase, a phrase or an option that cannot be used, an image that cannot be
            used and no output folder to report it in, or an output folder that cannot be written.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a graph failed, or no plan fits; results that were already written stay.
    """
    started, folder = time.perf_counter(), None if output is None else Path(output)
    report, work = progress or silent, _work(Path(image), phrases, folder)
    opened = find_bundle(bundle, expect=options.expect)
    check_trained(opened, allow_random_weights=options.allow_random_weights)
    sessions = open_backend(opened, backend)
    predictions: tuple[Prediction, ...] = ()
    with segmenter_of(opened, sessions, options.pipeline_options(opened.spec)) as segmenter:
        segmenter.check_phrases(list(dict.fromkeys(phrase for each in work for phrase in each.phrases)))
        predict = partial(
            predict_each,
            segmenter,
            bundle=opened,
            sessions=sessions,
            batch_size=backend.batch_size or UNET_ROWS,
        )
        if folder is None:
            report(f"segmenting {work[0].path}")
            predictions = tuple(predict(read_image(work[0].path), work[0].phrases))
            work = [dataclasses.replace(work[0], missing=work[0].phrases)]
            matched = sum(each.matched for each in predictions)
        else:
            settings = _settings(opened, segmenter.options, sessions)
            with open_result_store(folder, settings, overwrite=overwrite) as store:
                work = _fill(store, work, predict, report)
                matched = store.finish(_lines(store, work))
    used = [each for each in work if each.fault is None]
    return BatchResult(
        predictions=predictions,
        output=folder,
        images=len(work),
        new=sum(len(each.missing) for each in used),
        resumed=sum(len(each.phrases) - len(each.missing) for each in used),
        matched=matched,
        failures={each.name: each.fault for each in work if each.fault is not None},
        model=opened.spec.name,
        random_weights=opened.manifest.random_seed is not None,
        cautions=(*bundle_cautions(opened), NOT_CALIBRATED),
        backend=sessions.backend,
        backend_reason=sessions.reason,
        seconds=time.perf_counter() - started,
    )


def _work(image: Path, phrases: Sequence[str] | Path, output: Path | None) -> list[_Work]:
    """Collect the phrases of each image; nothing is read but a CSV file of phrases.

    Raises:
        InputError: no image or phrase, a phrase that cannot be used, or an output that cannot be written.
    """
    if output is not None:
        if output.suffix.lower() == ".png":
            raise InputError(f"got output {output}, expected a folder for many results; name one")
        check_result_folder(output)
    if output is None and (image.is_dir() or isinstance(phrases, Path)):
        raise InputError("got a folder of images and no output folder; name one (--output)")
    dataset = csv_dataset(image, phrases) if isinstance(phrases, Path) else folder_dataset(image, phrases)
    return [_Work(path=path, phrases=texts) for path, texts in phrases_by_file(dataset).items()]


def _fill(store: ResultStore, work: Sequence[_Work], predict: Predict, progress: Progress) -> list[_Work]:
    """Segment what the store does not hold yet.

    Returns:
        The work as it was found, without pixels.
    """
    done: list[_Work] = []
    with (
        BackgroundWriter(pending=WRITES_PENDING) as writer,
        prefetch(work, partial(_read, store), ahead=IMAGES_AHEAD) as arrived,
    ):
        for number, each in enumerate(arrived, start=1):
            progress(f"image {number}/{len(work)}: {_summary(each)}")
            if each.pixels is not None:
                _segment(store, writer, each, predict(each.pixels, each.missing))
            done.append(dataclasses.replace(each, pixels=None))
    return done


def _segment(
    store: ResultStore, writer: BackgroundWriter, work: _Work, predictions: Iterator[Prediction]
) -> None:
    """Run the predictions of one image, and hand each to the writer."""
    try:
        for phrase, prediction in zip(work.missing, predictions, strict=True):
            writer.submit(store.save, _without_intermediates(prediction), work.name, work.sha256, phrase)
    except EngineError as error:
        raise EngineError(
            f"{work.name}: {error} (results so far stay in {store.path}; the same command resumes there)"
        ) from error


def _read(store: ResultStore, work: _Work) -> _Work:
    """Find which phrases have no result yet, and read the image if there are any."""
    try:
        data = work.path.read_bytes()
    except OSError as error:
        return dataclasses.replace(
            work, fault=f"{work.path} cannot be read: {error.strerror or error}; check its permissions"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    missing = tuple(each for each in work.phrases if store.record(work.name, sha256, each) is None)
    found = dataclasses.replace(work, sha256=sha256, missing=missing)
    try:
        return dataclasses.replace(found, pixels=read_image(data, name=work.name) if missing else None)
    except InputError as error:
        return dataclasses.replace(found, fault=str(error))


def _without_intermediates(prediction: Prediction) -> Prediction:
    """Drop the heatmap and the other candidates' masks, which are not written: it may wait for the disk."""
    result = prediction.result
    empty = np.zeros((len(result.candidates), 0, 0), dtype=np.bool_)
    candidates = dataclasses.replace(result.candidates, masks=empty)
    light = dataclasses.replace(result, mask=result.mask.copy(), heat=None, candidates=candidates)
    return dataclasses.replace(prediction, result=light)


def _lines(store: ResultStore, work: Sequence[_Work]) -> Iterator[dict[str, Any]]:
    """Yield one line for each image and phrase, in order, read back from the records."""
    for each in work:
        if each.fault is not None:
            yield {"picture": each.name, "error": each.fault}
            continue
        for phrase in each.phrases:
            document = store.record(each.name, each.sha256, phrase)
            if document is None:
                raise InputError(
                    f"the result of {phrase!r} on {each.name} disappeared from {store.path} while the run "
                    "wrote there; repeat the command"
                )
            yield {**document, "files": store.files(each.name, phrase)}


def _summary(work: _Work) -> str:
    if work.fault is not None:
        return f"{work.name} cannot be used"
    done = len(work.phrases) - len(work.missing)
    return f"{work.name}, {len(work.missing)} phrases" + (f", {done} done before" if done else "")


def _settings(bundle: Bundle, options: Options, sessions: BackendSessions) -> dict[str, Any]:
    """Return everything that a result depends on except image and phrase."""
    return {
        "format": 3,
        "refdiff": refdiff_version(),
        "model": bundle.spec.name,
        "precision": bundle.manifest.precision,
        "bundle": bundle.manifest.sha256,
        "options": dataclasses.asdict(options),
        "backend": sessions.backend,
    }
