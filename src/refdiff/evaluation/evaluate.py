"""`evaluate`: metrics of a bundle, or of the torch reference, on samples with true masks (METHOD §11).

Samples of one image are answered together, so that the work on the image is done once. With an output folder,
every sentence has a record (`records`), and an interrupted run resumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from refdiff.batch.distributed import RayOptions
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions, check_cores
from refdiff.contracts.progress import Progress, Step, silent
from refdiff.data.sample import Dataset, Sample
from refdiff.data.synthetic import RenderedScenes
from refdiff.errors import InputError
from refdiff.evaluation.answering import (
    EvaluatedModel,
    answer_all,
    choose_backend,
    find_model,
    model_settings,
    open_model,
)
from refdiff.evaluation.records import SentenceRecord, open_records
from refdiff.evaluation.summary import Summary, group_by_cue, summarize, summarize_other
from refdiff.profiling.sensors import peak_resident
from refdiff.reports.page import Section
from refdiff.reports.table import facts_table, size_text
from refdiff.runtime.cautions import phrase_cautions

_REPORT_EVERY = 10

_FOREIGN_SHARE = 0.2
_LONGEST_SHOWN = 60

_MEASURED = 4
"""Images that `estimate` runs."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The metrics of one model on one or more data sets."""

    model: EvaluatedModel
    backend: str | None
    """The back-end that ran the graphs; None for the reference."""
    backend_reason: str | None
    seed: int | None
    """Seed of the first rendered scene; None for other data sets."""
    summary: Summary
    """Of all sentences."""
    by_subset: dict[str, Summary]
    """Data set and split -> its metrics; empty if no sample names one."""
    by_cue: dict[str, Summary]
    """Class of phrase or size of object -> metrics of the sentences in it."""
    other_selector: dict[str, Summary]
    """As `by_subset`, with the other selector of mode `gen` (METHOD §8); empty in other modes."""
    cautions: tuple[str, ...]
    """What readers of the figures have to know of the data."""
    records: tuple[SentenceRecord, ...]
    resumed: int
    """Sentences whose records an earlier run had written."""
    seconds: float
    pipeline_seconds: float
    """Part of `seconds` inside the pipeline, summed over processes."""

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
            **self.summary.to_json(),
            "by_subset": {name: each.to_json() for name, each in self.by_subset.items()},
            "by_cue": {name: each.to_json() for name, each in self.by_cue.items()},
            "other_selector": {name: each.to_json() for name, each in self.other_selector.items()},
            "cautions": list(self.cautions),
            "resumed": self.resumed,
            "seconds": round(self.seconds, 2),
            "pipeline_seconds": round(self.pipeline_seconds, 2),
        }


def evaluate(
    bundle: Path | str,
    dataset: Dataset,
    *,
    runtime: str = "onnx",
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    jobs: int | RayOptions = 1,
    output: Path | str | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Segment every sample of a data set and compare the masks with the true ones.

    Args:
        bundle: its folder, or the name of a built-in one, which the torch reference exists for.
        dataset: samples with true masks; those of one image in a row share the work on it.
        runtime: "onnx" for the bundle's graphs, "torch" for the reference.
        options: what is computed.
        backend: where and how the graphs run; not for the reference.
        jobs: number of processes, or a Ray cluster.
        output: folder for one record per sentence and a summary; a run that was interrupted resumes there.
        progress: called with one line every few samples.

    Raises:
        InputError: an option cannot be used, a sample has no true mask or one that does not fit its image, or
            the output folder cannot be used.
        BundleError: the bundle is missing, damaged or newer.
        MissingDependencyError: torch, a package of the data set or the back-end's package is not installed.
        EngineError: a graph failed.
    """
    if isinstance(jobs, int):
        check_cores(jobs, "processes")
    model = EvaluatedModel(bundle=str(bundle), runtime=runtime, options=options, backend=backend)
    report, start = progress or silent, time.perf_counter()
    found = find_model(model)
    chosen, reason = choose_backend(model, found)
    settings = model_settings(model, chosen, found)
    with open_records(Path(output), settings) if output is not None else nullcontext() as file:
        collection = _Collection(dataset, file.known if file is not None else {}, report)
        seconds = 0.0
        for answers in answer_all(model, found, collection.missing(), jobs, settings, report):
            seconds += answers.seconds
            for record in answers.records:
                if file is not None:
                    file.add(record)
                collection.add(record)
        records = collection.records
        result = EvaluationReport(
            model=model,
            backend=chosen,
            backend_reason=reason,
            seed=dataset.seed if isinstance(dataset, RenderedScenes) else None,
            summary=summarize(records),
            by_subset=by_subset(records, summarize),
            other_selector=by_subset(records, summarize_other),
            cautions=language_cautions([record.phrase for record in records]),
            by_cue={cue: summarize(part) for cue, part in group_by_cue(records).items()},
            records=records,
            resumed=collection.resumed,
            seconds=time.perf_counter() - start,
            pipeline_seconds=seconds,
        )
        if file is not None:
            file.finish({**settings, **result.to_json()})
    return result


class _Collection:
    """The records of a data set, in its order: known ones, and those that are answered."""

    def __init__(self, dataset: Dataset, known: Mapping[str, SentenceRecord], progress: Progress) -> None:
        self._dataset = dataset
        self._known = dict(known)
        self._progress = progress
        self._records: dict[str, SentenceRecord | None] = {}
        self._done, self._iou_sum = 0, 0.0

    def missing(self) -> Iterator[tuple[Sample, ...]]:
        """Yield the samples of each image that have no record yet."""
        for picture in _by_picture(self._dataset):
            todo = tuple(sample for sample in picture if self._start(sample) is None)
            if todo:
                yield todo

    def _start(self, sample: Sample) -> SentenceRecord | None:
        """Return the known record of a sample, and keep its place."""
        if sample.id in self._records:
            raise InputError(f"two samples have the id {sample.id!r}, expected different ones")
        record = self._known.get(sample.id)
        if record is not None and record.phrase != sample.phrase:
            raise InputError(
                f"{sample.id} was recorded with phrase {record.phrase!r}, now it is {sample.phrase!r}; the "
                "data set has changed, choose another output folder"
            )
        self._records[sample.id] = record
        if record is not None:
            self._count(record)
        return record

    def add(self, record: SentenceRecord) -> None:
        """Take a new record."""
        self._records[record.id] = record
        self._count(record)
        if self._done % _REPORT_EVERY == 0 or self._done == len(self._dataset):
            miou = self._iou_sum / self._done
            done, total = self._done, len(self._dataset)
            self._progress(
                Step(f"{done}/{total} samples, mIoU {miou:.3f}", done=done, total=total, unit="samples")
            )

    def _count(self, record: SentenceRecord) -> None:
        self._done += 1
        self._iou_sum += record.iou

    @property
    def records(self) -> tuple[SentenceRecord, ...]:
        """The records so far, in the order of the samples."""
        return tuple(each for each in self._records.values() if each is not None)

    @property
    def resumed(self) -> int:
        """Number of records that were known."""
        return sum(name in self._known for name in self._records)


def _by_picture(samples: Iterable[Sample]) -> Iterator[tuple[Sample, ...]]:
    for _, group in groupby(samples, key=lambda sample: sample.picture or sample.id):
        yield tuple(group)


def by_subset(
    records: Sequence[SentenceRecord], measure: Callable[[list[SentenceRecord]], Summary | None]
) -> dict[str, Summary]:
    """Return the metrics of each subset that has some; nothing if no record names one."""
    names = dict.fromkeys(record.subset for record in records if record.subset)
    found = {name: measure([each for each in records if each.subset == name]) for name in names}
    return {name: summary for name, summary in found.items() if summary is not None}


def language_cautions(phrases: Sequence[str]) -> tuple[str, ...]:
    """Return one line if a fifth or more of the phrases do not look English."""
    foreign = [text for text in phrases if any("language:" in each for each in phrase_cautions(text))]
    if not foreign or len(foreign) < _FOREIGN_SHARE * len(phrases):
        return ()
    return (
        f"language: {len(foreign)} of {len(phrases)} phrases do not look English, such as "
        f"{foreign[0][:_LONGEST_SHOWN]!r}; the models read English only, and the figures say little",
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an evaluation will take, measured on its first images."""

    subsets: dict[str, int]
    """Data set and split -> sentences."""
    sentences: int
    pictures: int
    measured: int
    """Images that were measured."""
    seconds: float
    """Of the whole evaluation, loading excluded."""
    memory_bytes: int | None
    """Peak resident memory of one process so far; None where the system does not report it."""
    jobs: int
    cautions: tuple[str, ...] = ()
    """As in a report."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "subsets": self.subsets,
            "sentences": self.sentences,
            "pictures": self.pictures,
            "measured": self.measured,
            "seconds": round(self.seconds, 1),
            "memory_bytes": self.memory_bytes,
            "jobs": self.jobs,
            "cautions": list(self.cautions),
        }

    def to_section(self) -> Section:
        """Return the estimate as a table."""
        hours, seconds = divmod(round(self.seconds), 3600)
        facts = [(name, f"{count} sentences") for name, count in self.subsets.items()]
        facts += [
            ("all", f"{self.sentences} sentences on {self.pictures} images"),
            ("time", f"about {hours} h {seconds // 60} min {seconds % 60} s in {self.jobs} processes"),
            (
                "memory",
                "unknown" if self.memory_bytes is None else f"{size_text(self.memory_bytes)} a process",
            ),
        ]
        note = f"estimated from the first {self.measured} images; nothing was written"
        return Section(tables=[facts_table(facts, footnotes=(note, *self.cautions))])


def estimate(
    bundle: Path | str,
    dataset: Dataset,
    *,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    jobs: int = 1,
) -> Estimate:
    """Run the first images of a data set, and extrapolate to all of them.

    The first image warms up and counts for memory only, unless it is the only one.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        dataset: as for `evaluate`.
        options: as for `evaluate`.
        backend: as for `evaluate`.
        jobs: number of processes the time is divided by.

    Raises:
        RefdiffError: as for `evaluate`.
    """
    model = EvaluatedModel(bundle=str(bundle), runtime="onnx", options=options, backend=backend)
    found = find_model(model)
    choose_backend(model, found)
    pictures = list(_by_picture(dataset))
    first = pictures[:_MEASURED]
    spent: list[tuple[float, int]] = []
    with ExitStack() as stack:
        answer = open_model(model, found, stack)
        for picture in first:
            start = time.perf_counter()
            answer(picture)
            spent.append((time.perf_counter() - start, len(picture)))
    measured = spent[1:] or spent
    # Images cost more than sentences: seconds per image, scaled by how many sentences the others have.
    per_image = sum(seconds for seconds, _ in measured) / len(measured)
    subsets: dict[str, int] = {}
    for picture in pictures:
        for sample in picture:
            subsets[sample.subset or "samples"] = subsets.get(sample.subset or "samples", 0) + 1
    return Estimate(
        subsets=subsets,
        sentences=sum(subsets.values()),
        pictures=len(pictures),
        measured=len(spent),
        seconds=per_image * len(pictures) / jobs,
        memory_bytes=peak_resident(),
        jobs=jobs,
        cautions=language_cautions([sample.phrase for picture in pictures for sample in picture]),
    )
