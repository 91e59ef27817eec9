"""A run into an output folder: read, segment, write; and what a failure means to it.

Images are read ahead and predictions are written in the background while the graphs run (`prefetch`). What
the folder holds of an earlier, interrupted run is reused (`result_store`).

`FolderRun.fail` decides what a failure means, for whatever is raised while an image is read, segmented or
drawn: it is recorded with the image's name and the run goes on; the next run tries the image again. Only what
concerns every image ends a run: a damaged bundle, a missing package or device, a device that also fails on
another image, and an output folder that cannot be written.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.batch.prediction import Prediction
from refdiff.batch.prefetch import BackgroundWriter, prefetch
from refdiff.batch.result_store import COCO_NAME, INDEX_NAME, ResultStore
from refdiff.batch.summaries import write_coco, write_index
from refdiff.batch.training_set import ExportCounts, FinishedRun, export_training_set
from refdiff.batch.work_list import Work, WorkList
from refdiff.contracts.plain_file import read_plain
from refdiff.contracts.progress import Progress, Step
from refdiff.data.folder import describe_skipped
from refdiff.errors import BundleError, EngineError, InputError, MissingDependencyError, RefdiffError
from refdiff.runtime.image import read_image

IMAGES_AHEAD = 1
"""Images that are read while another is segmented: reading one takes less time than its graphs."""

WRITES_PENDING = 4
"""Predictions that may wait to be written, an image and a full-size mask each."""

_PROBE = np.full((64, 64, 3), 128, np.uint8)
"""The image that shows whether a device still works after a graph has failed on another."""

Predict = Callable[[NDArray[np.uint8], Sequence[str]], Iterator[Prediction]]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The results of an image as the contents of files, made by another process."""

    name: str
    contents: tuple[tuple[str, dict[str, bytes]], ...]
    """Phrase, and kind -> content of the file, the record last."""
    failure: str | None
    """Reason why a result is missing."""


@dataclass(kw_only=True)
class FolderRun:
    """A run into an output folder."""

    store: ResultStore
    predict: Predict
    report: Progress
    failures: dict[str, str] = field(default_factory=dict)
    """Image's name -> why it has no result, or not all of them."""
    device_works: bool = False
    """The last graphs that ran did not fail."""
    elsewhere: Callable[[Sequence[Work]], Iterator[Encoded]] | None = None
    """Runs `encode` in other processes, in any order; None: this process does all."""

    def complete(
        self, plan: WorkList, *, title: str, coco: bool, export: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Segment what the store does not hold yet, write the summaries, and return the counts."""
        done = self._fill(plan.items) if self.elsewhere is None else self._collect(plan.items)
        counts = Counter[str]()
        self.store.finish(self._lines(done, counts))
        notes = [
            f"{counts['answered'] + counts['resumed']} results on {len(done)} images, "
            f"{counts['failed']} failed.",
            *describe_skipped(plan.skipped),
        ]
        write_index(self.store.path / INDEX_NAME, self.store.lines(), title=title, notes=notes)
        if coco:
            write_coco(self.store.path / COCO_NAME, self.store.lines())
        exports = self._export(export, done)
        names = ("answered", "resumed", "failed", "matched")
        counted = {name: counts[name] for name in names}
        return {"predictions": (), "failures": self.failures, "exports": exports, **counted}

    def _export(self, kinds: Sequence[str], done: Sequence[Work]) -> dict[str, ExportCounts]:
        if not kinds:
            return {}
        run = FinishedRun(
            folder=self.store.path,
            lines=list(self.store.lines()),
            work={work.name: work for work in done},
        )
        exports = {}
        for kind in dict.fromkeys(kinds):
            self.report(f"writing {self.store.path / kind}")
            exports[kind] = export_training_set(kind, run)
        return exports

    def fail(self, work: Work, error: Exception) -> None:
        """Record that an image failed; raise what concerns every image.

        Raises:
            BundleError: `error`.
            MissingDependencyError: `error`.
            EngineError: `error`, if the graphs fail on another image too.
        """
        if isinstance(error, (BundleError, MissingDependencyError)):
            raise error
        if isinstance(error, EngineError) and not self.device_works and not self._probe(work.phrases[0]):
            raise EngineError(
                f"{work.name}: {error} (results so far stay in {self.store.path}; "
                "the same command resumes there)"
            ) from error
        if isinstance(error, EngineError):
            self.device_works = False
        self.failures.setdefault(work.name, _describe(work, error))

    def _probe(self, phrase: str) -> bool:
        """Return whether the graphs run on a small gray image."""
        try:
            for _ in self.predict(_PROBE, (phrase,)):
                pass
        except EngineError:
            return False
        except Exception:  # not the device's fault
            return True
        return True

    def _fill(self, items: Sequence[Work]) -> list[Work]:
        """Segment what the store does not hold yet; return the work as it was found, without pixels."""
        done: list[Work] = []
        with (
            BackgroundWriter(pending=WRITES_PENDING) as writer,
            prefetch(items, self._read, ahead=IMAGES_AHEAD) as arrived,
        ):
            for number, work in enumerate(arrived, start=1):
                text = f"image {number}/{len(items)}: {work.summary}"
                self.report(Step(text, done=number - 1, total=len(items), unit="images"))
                for phrase, prediction in self._predictions(work):
                    writer.submit(self._write, work, phrase, _without_intermediates(prediction))
                done.append(dataclasses.replace(work, pixels=None))
        return done

    def _collect(self, items: Sequence[Work]) -> list[Work]:
        """Have the missing results encoded elsewhere, and save them as they arrive."""
        done = [dataclasses.replace(self._read(work, decode=False), pixels=None) for work in items]
        self.failures.update({work.name: work.fault for work in done if work.fault is not None})
        missing = [work for work in done if work.missing]
        assert self.elsewhere is not None  # noqa: S101 - for mypy
        for number, encoded in enumerate(self.elsewhere(missing), start=1):
            for phrase, contents in encoded.contents:
                self.store.save(contents, encoded.name, phrase)
            if encoded.failure is not None:
                self.failures[encoded.name] = encoded.failure
            at = len(done) - len(missing) + number
            self.report(
                Step(f"image {at}/{len(done)}: {encoded.name}", done=at, total=len(done), unit="images")
            )
        return done

    def encode(self, work: Work) -> Encoded:
        """Segment the missing phrases of an image and encode the results, for another process to save.

        Args:
            work: its hash and its missing phrases are known.

        Raises:
            RefdiffError: as for `fail`.
        """
        contents = []
        try:
            pixels = read_image(_read_same(work), name=work.name)
            for phrase, prediction in self._predictions(dataclasses.replace(work, pixels=pixels)):
                contents.append((phrase, self.store.encode(prediction, work.name, work.sha256, phrase)))
        except Exception as error:
            self.fail(work, error)
        failure = self.failures.pop(work.name, None)
        return Encoded(name=work.name, contents=tuple(contents), failure=failure)

    def _read(self, work: Work, *, decode: bool = True) -> Work:
        """Find which phrases have no result yet, and read the image if there are any; never raises."""
        try:
            if work.fault is None:
                data = read_plain(work.path)
                sha256 = hashlib.sha256(data).hexdigest()
                missing = tuple(
                    each for each in work.phrases if self.store.record(work.name, sha256, each) is None
                )
                work = dataclasses.replace(work, sha256=sha256, missing=missing)
                if missing and decode:
                    work = dataclasses.replace(work, pixels=read_image(data, name=work.name))
        except Exception as error:
            work = dataclasses.replace(work, fault=_describe(work, error))
        return work

    def _predictions(self, work: Work) -> Iterator[tuple[str, Prediction]]:
        """Yield the missing phrases with their predictions, up to a failure."""
        if work.fault is not None:
            self.failures[work.name] = work.fault
        if work.pixels is None:
            return
        try:
            for answer in zip(work.missing, self.predict(work.pixels, work.missing), strict=True):
                self.device_works = True
                yield answer
        except Exception as error:
            self.fail(work, error)

    def _write(self, work: Work, phrase: str, prediction: Prediction) -> None:
        try:
            contents = self.store.encode(prediction, work.name, work.sha256, phrase)
        except Exception as error:
            self.fail(work, error)
        else:
            self.store.save(contents, work.name, phrase)

    def _lines(self, done: Sequence[Work], counts: Counter[str]) -> Iterator[dict[str, Any]]:
        """Yield one line for each image and phrase, in order, read back from the records; count them."""
        for work in done:
            for phrase in work.phrases:
                document = self.store.record(work.name, work.sha256, phrase, verify=False)
                if document is None:
                    reason = self.failures.setdefault(
                        work.name,
                        f"{work.name}: a result disappeared from {self.store.path}; repeat the command",
                    )
                    document = {"image": work.name, "phrase": phrase, "error": reason}
                    counts["failed"] += 1
                else:
                    counts["answered" if phrase in work.missing else "resumed"] += 1
                    counts["matched"] += bool(document["matched"])
                yield document


def _read_same(work: Work) -> bytes:
    """Read the file of an image whose hash is known."""
    data = work.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != work.sha256:
        raise InputError(f"{work.name} was changed during the run; repeat the command")
    return data


def _describe(work: Work, error: Exception) -> str:
    """Return one line: the image's name, what is wrong with it, and what to do."""
    text = str(error)
    if isinstance(error, OSError):
        what = (
            "is a link to nothing" if work.path.is_symlink() and not work.path.exists() else "cannot be read"
        )
        text = f"{work.name} {what}: {error.strerror or error}; check the file and its permissions"
    elif not isinstance(error, RefdiffError):
        text = f"unexpected {type(error).__name__}: {error}; report it, with the image if you can"
    line = " ".join(text.split())
    return line if work.name in line else f"{work.name}: {line}"


def _without_intermediates(prediction: Prediction) -> Prediction:
    """Drop the heatmap and the other candidates' masks, which are not written: it may wait for the disk."""
    result = prediction.result
    empty = np.zeros((len(result.candidates), 0, 0), dtype=np.bool_)
    candidates = dataclasses.replace(result.candidates, masks=empty)
    light = dataclasses.replace(result, mask=result.mask.copy(), heat=None, candidates=candidates)
    return dataclasses.replace(prediction, result=light)
