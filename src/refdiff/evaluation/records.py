"""One record for each sentence, and the file that keeps them: complete lines survive a kill at any moment.

OUTPUT/run.json         what records depend on: the bundle's hashes, options, back-end
OUTPUT/records.jsonl    one line per sentence, in the order in which they were answered
OUTPUT/summary.json     metrics, written when all sentences are answered
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.accuracy.metrics import ious_with, overlap_px
from refdiff.batch.prediction import parts_of
from refdiff.contracts.atomic_io import report_write_errors, sync, write_file
from refdiff.contracts.file_lock import lock_file
from refdiff.contracts.options import Options
from refdiff.contracts.plain_file import read_plain
from refdiff.contracts.session import Bool
from refdiff.data.sample import Sample, Truth, read_truth
from refdiff.errors import InputError
from refdiff.runtime.masks import compress_coco_rle, to_coco_rle
from refdiff.runtime.phrase import parse_phrase
from refdiff.runtime.scoring import choose, fuse, heatmap_scores
from refdiff.runtime.segmentation import Segmentation

RUN_NAME, RECORDS_NAME, SUMMARY_NAME = "run.json", "records.jsonl", "summary.json"

COLORS = frozenset(
    [
        "black",
        "blue",
        "brown",
        "gold",
        "gray",
        "green",
        "grey",
        "orange",
        "pink",
        "purple",
        "red",
        "silver",
        "tan",
        "white",
        "yellow",
        "beige",
    ]
)
_SINGULAR_S = frozenset(
    [
        "glass",
        "bus",
        "dress",
        "grass",
        "lens",
        "christmas",
        "tennis",
        "canvas",
        "gas",
        "his",
        "this",
        "is",
        "has",
        "was",
    ]
)


@dataclass(frozen=True, kw_only=True)
class SentenceRecord:
    """What was answered to one sentence, and how it compares with the truth."""

    id: str
    """Unique over all data sets."""
    subset: str
    picture: str
    """Name of the image; sentences of one image are resampled together."""
    phrase: str
    root: str
    matched: bool
    """A mask was returned."""
    reason: str | None
    confidence: float | None
    """0..1, the probability of an IoU of at least 0.5; None without a calibration."""
    score: float | None
    """None where nothing was chosen."""
    scores: dict[str, float] | None
    """Parts of the chosen candidate's score."""
    intersection_px: int
    union_px: int
    truth_px: int
    """0: the sentence refers to nothing in the image."""
    image_px: int
    other_selector: tuple[int, int] | None = None
    """Mode `gen`: intersection and union of what the other selector chooses, in px (METHOD §8); else None."""
    candidate_ious: tuple[float, ...]
    """IoU of each candidate that could have been chosen with the truth."""
    cues: tuple[str, ...]
    """Classes of the phrase: those of its data set, or else place, relation, attribute, plural and length."""
    rle: dict[str, Any]
    """The answer as compressed COCO run lengths."""

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where nothing is referred to and nothing was answered."""
        return self.intersection_px / self.union_px if self.union_px else 1.0

    @property
    def oracle_iou(self) -> float:
        """IoU of the best candidate, or of the answer where that is better."""
        return max((*self.candidate_ious, self.iou))

    @property
    def has_target(self) -> bool:
        """The sentence refers to something in the image."""
        return self.truth_px > 0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, which shares its parts with the record."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SentenceRecord:
        """Return the record of a line.

        Raises:
            TypeError: the document has other fields.
        """
        names = ("candidate_ious", "cues", "other_selector")
        lists = {name: tuple(document[name]) for name in names if document.get(name) is not None}
        return cls(**{**document, **lists})


def records_of(
    samples: Sequence[Sample], results: Iterable[Segmentation], options: Options | None = None
) -> tuple[SentenceRecord, ...]:
    """Compare the answers on one image with their truths; a truth that sentences share is decoded once.

    Args:
        samples: of one image.
        results: the answers to them.
        options: of the pipeline; in mode `gen` they decide what the other selector is. None: it is left out.

    Raises:
        InputError: a sample has no true mask, or one of another size than the image.
    """
    truths: dict[int, Truth] = {}
    for sample in samples:
        if id(sample.truth) not in truths:
            truths[id(sample.truth)] = read_truth(sample)
    pairs = zip(samples, results, strict=True)
    return tuple(_record_of(sample, result, truths[id(sample.truth)], options) for sample, result in pairs)


def _record_of(sample: Sample, result: Segmentation, truth: Truth, options: Options | None) -> SentenceRecord:
    if truth.mask.shape != result.mask.shape:
        raise InputError(
            f"{sample.id}: the true mask is {truth.mask.shape} px (height, width), the image "
            f"{result.mask.shape}; correct the data set"
        )
    answer, counted = result.mask, None if truth.ignored is None else ~truth.ignored
    masks = (result.candidates.masks[each] for each in np.flatnonzero(result.candidates.kept))
    if counted is not None:
        answer, masks = answer & counted, (mask & counted for mask in masks)
    other = None if options is None else other_choice(result, options)
    if other is not None and counted is not None:
        other = other & counted
    shared_px, union_px = overlap_px(answer, truth.mask)
    truth_px = int(np.count_nonzero(truth.mask))
    parts = parts_of(result)
    return SentenceRecord(
        id=sample.id,
        subset=sample.subset,
        picture=sample.picture or sample.id,
        phrase=sample.phrase,
        root=result.root,
        matched=result.matched,
        reason=result.reason,
        confidence=result.confidence,
        score=result.score if math.isfinite(result.score) else None,
        scores=None if parts is None else {name: round(value, 6) for name, value in parts.items()},
        intersection_px=shared_px,
        union_px=union_px,
        other_selector=None if other is None else overlap_px(other, truth.mask),
        truth_px=truth_px,
        image_px=truth.mask.size,
        candidate_ious=tuple(round(each, 6) for each in ious_with(truth.mask, masks)) if truth_px else (),
        cues=tuple(sorted(sample.cues or phrase_classes(sample.phrase))),
        rle=compress_coco_rle(to_coco_rle(result.mask)),
    )


def other_choice(result: Segmentation, options: Options) -> Bool | None:
    """Return the level set that the other selector of mode `gen` chooses (METHOD §8); None in other modes."""
    if options.mode != "gen" or result.heat is None:
        return None
    own = options.fusion.level_selector
    fusion = replace(options.fusion, level_selector="contrast" if own == "between-class" else "between-class")
    other, levels = replace(options, fusion=fusion), result.candidates
    index = choose(fuse(other, heatmap_scores(other, result.heat, levels), levels.kept))
    return np.zeros_like(result.mask) if index is None else levels.masks[index]


def phrase_classes(text: str) -> frozenset[str]:
    """Return the classes that results are grouped by: place, relation, attribute, plural, and length."""
    phrase = parse_phrase(text, word_boundaries=True)
    words = phrase.text.lower().split()
    root = phrase.root.lower()
    found = {
        "place": phrase.place is not None or phrase.superlative is not None,
        "relation": phrase.relation is not None,
        "attribute": phrase.size is not None or not COLORS.isdisjoint(words),
        "plural": root in ("people", "men", "women", "children", "two", "three", "both")
        or (root.endswith("s") and not root.endswith("ss") and root not in _SINGULAR_S),
    }
    length = next(
        name for most, name in ((2, "1-2"), (5, "3-5"), (9, "6-9"), (10**6, "10+")) if len(words) <= most
    )
    return frozenset({name for name, holds in found.items() if holds} | {f"{length} words"})


@dataclass
class RecordFile:
    """The records of an evaluation, those of earlier, interrupted runs included."""

    folder: Path
    known: dict[str, SentenceRecord]
    _stream: FileIO

    def add(self, record: SentenceRecord) -> None:
        """Append a record; it is in the file when this returns.

        Raises:
            InputError: the disk refuses.
        """
        line = json.dumps(record.to_json(), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        rest = memoryview(line)
        with report_write_errors(self.folder / RECORDS_NAME):
            while rest:  # not buffered: closing the file must not try again what a full disk refused
                rest = rest[self._stream.write(rest) :]
        self.known[record.id] = record

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary.

        Raises:
            InputError: the disk refuses.
        """
        with report_write_errors(self.folder / SUMMARY_NAME):
            sync(self.folder / RECORDS_NAME)
            write_file(self.folder / SUMMARY_NAME, json.dumps(summary, indent=1, allow_nan=False) + "\n")


@contextmanager
def open_records(folder: Path, settings: Mapping[str, Any]) -> Iterator[RecordFile]:
    """Create or resume the records in `folder`, which only this process writes to while the block runs.

    Args:
        folder: new, empty, or of an earlier run of the same settings.
        settings: JSON-ready; everything that an answer depends on apart from image and phrase.

    Raises:
        InputError: the folder is in use, was written with other settings, or cannot be written.
    """

    def refuse() -> None:
        raise InputError(f"another evaluation is writing to {folder}; wait, or choose another folder")

    with ExitStack() as stack:
        with report_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(folder / ".lock", on_busy=refuse))
            _check_settings(folder, json.loads(json.dumps(settings)))
            known = _read_records(folder / RECORDS_NAME)
            stream = stack.enter_context((folder / RECORDS_NAME).open("ab", buffering=0))
        yield RecordFile(folder, known, stream)


def _check_settings(folder: Path, wanted: Mapping[str, Any]) -> None:
    path = folder / RUN_NAME
    others = {each.name for each in folder.iterdir()} - {".lock"}
    if not path.exists():
        if others:
            raise InputError(
                f"{folder} is no folder of an evaluation: it contains {sorted(others)[0]!r}; choose another"
            )
        write_file(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = json.loads(read_plain(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); choose another folder") from error
    differing = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
    if differing:
        raise InputError(
            f"{folder} was written with another {differing[0]}; use the same settings, or another folder"
        )


def _read_records(path: Path) -> dict[str, SentenceRecord]:
    """Read the records, and cut off a last line that a killed run left incomplete."""
    if not path.exists():
        return {}
    data = read_plain(path)
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    records = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = SentenceRecord.from_json(json.loads(line))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}, line {number} is damaged ({error}); delete the line, and repeat the command"
            ) from error
        records[record.id] = record
    return records
