"""Many questions: several phrases on one picture, or on each picture of a folder.

Pictures are read ahead and answers written behind while the graphs run (`overlap`); what a folder holds of an
earlier, stopped run is not asked again (`answer_folder`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.batch.errands import Errand, errands_of
from refdiff.batch.prediction import Answer
from refdiff.batch.prefetch import WriteBehind, read_ahead
from refdiff.batch.result_store import AnswerFolder, open_answer_folder
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.options import options_for
from refdiff.contracts.progress import Progress, silent
from refdiff.engines.factory import BackendSessions, open_sessions
from refdiff.errors import EngineError, InputError
from refdiff.loading import segmenter_of
from refdiff.runtime.batching import UNET_ROWS
from refdiff.runtime.image import read_picture
from refdiff.runtime.pipeline import Segmenter

AHEAD = 1
"""Pictures that are read while another is worked on: reading one takes less time than its graphs."""

BEHIND = 4
"""Answers that may wait to be written, a picture and a full-size mask each."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What came of many questions."""

    answers: tuple[Answer, ...]
    """In order, where they were not written to a folder."""
    output: Path | None
    pictures: int
    new: int
    """Questions answered now."""
    resumed: int
    """Questions that an earlier run had answered."""
    matched: int
    """Of all that are answered."""
    failures: dict[str, str]
    """Picture -> why it could not be used."""
    model: str
    random_weights: bool
    backend: str
    backend_reason: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        document = {
            **{each.name: getattr(self, each.name) for each in dataclasses.fields(self)},
            "answers": [answer.to_json() for answer in self.answers],
            "output": None if self.output is None else str(self.output),
            "seconds": round(self.seconds, 2),
        }
        if self.output is not None:
            del document["answers"]
        return document


@dataclass(frozen=True)
class _Read:
    """A picture as its reader hands it over."""

    errand: Errand
    sha256: str
    open: tuple[str, ...]
    """The phrases that have no answer yet."""
    image: NDArray[np.uint8] | None
    """None where every phrase has its answer, or the picture cannot be used."""
    fault: str | None = None


@dataclass
class _Tally:
    new: int = 0
    resumed: int = 0
    matched: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def segment_many(
    bundle: Path | str,
    picture: Path | str,
    phrases: Sequence[str] | Path,
    *,
    output: Path | str | None = None,
    overwrite: bool = False,
    batch_size: int | None = None,
    backend: str = "auto",
    variant: str = "edge",
    mode: str = "full",
    seed: int = 0,
    reader: str = "rules",
    threads: int | None = None,
    memory: str | None = None,
    allow_random_weights: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """Find what each phrase names in a picture, or in each picture of a folder.

    A picture that cannot be used is reported with the others' answers; a phrase that cannot is refused before
    any work. Given again, a run that was stopped goes on where it was.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        picture: a picture file, or a folder of pictures.
        phrases: asked of each picture; or the path of a CSV file with the header `image,phrase`, whose
            pictures lie in the folder `picture`.
        output: a folder for masks, overlays and records; needed with a folder of pictures. None: the answers
            are handed back instead.
        overwrite: take an output folder that was answered with other settings.
        batch_size: most rows of a UNet call; the back-end's own limit holds, too. More take more memory.
            None: two.
        backend: as in `load`, like all that follow but the last.
        variant: see `load`.
        mode: see `load`.
        seed: see `load`.
        reader: see `load`.
        threads: see `load`.
        memory: see `load`.
        allow_random_weights: see `load`.
        progress: told one line per picture.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: no picture or phrase, a phrase that cannot be asked, a picture that cannot be used where
            there is no output folder to report it in, an option, or an output folder that cannot be taken.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a graph failed, or no plan fits; what was answered before stays.
    """
    started, folder = time.perf_counter(), None if output is None else Path(output)
    errands = errands_of(Path(picture), phrases, folder)
    opened = find_bundle(bundle)
    check_trained(opened, allow_random_weights=allow_random_weights)
    options = options_for(opened.spec, variant=variant, mode=mode, seed=seed, reader=reader)
    sessions = open_sessions(opened, backend=backend, threads=threads, memory=memory)
    tell, answers = progress or silent, list[Answer]()
    with segmenter_of(opened, sessions, options) as segmenter:
        segmenter.check_phrases(list(dict.fromkeys(p for errand in errands for p in errand.phrases)))
        survey = _Surveyor(segmenter, opened, sessions, batch_size or UNET_ROWS, tell)
        if folder is None:
            answers += survey.ask(errands[0])
            tally = _Tally(new=len(answers), matched=sum(answer.matched for answer in answers))
        else:
            settings = _settings(opened, segmenter, sessions)
            with open_answer_folder(folder, settings, overwrite=overwrite) as kept:
                tally = survey.fill(kept, errands)
    return Survey(
        answers=tuple(answers),
        output=folder,
        pictures=len(errands),
        **dataclasses.asdict(tally),
        model=opened.spec.name,
        random_weights=opened.manifest.random_seed is not None,
        backend=sessions.backend,
        backend_reason=sessions.reason,
        seconds=time.perf_counter() - started,
    )


class _Surveyor:
    """Asks errands of one open segmenter."""

    def __init__(
        self, segmenter: Segmenter, bundle: Bundle, sessions: BackendSessions, rows: int, tell: Progress
    ) -> None:
        self._segmenter = segmenter
        self._bundle = bundle
        self._sessions = sessions
        self._rows = rows
        self._tell = tell

    def ask(self, errand: Errand) -> list[Answer]:
        """All answers on one picture."""
        self._tell(f"segmenting {errand.picture}")
        return list(self._answers(read_picture(errand.picture), errand.phrases))

    def fill(self, folder: AnswerFolder, errands: Sequence[Errand]) -> _Tally:
        """Answer into a folder what it does not hold yet, then write its results."""
        tally, hashes = _Tally(), dict[str, str]()
        with (
            WriteBehind(behind=BEHIND) as writer,
            read_ahead(errands, lambda errand: _read(errand, folder), ahead=AHEAD) as arrived,
        ):
            for number, read in enumerate(arrived, start=1):
                name = read.errand.picture.name
                self._tell(f"picture {number}/{len(errands)}: {_progress(read)}")
                hashes[name] = read.sha256
                if read.fault is not None:
                    tally.failures[name] = read.fault
                elif read.image is not None:
                    self._hand_over(read.image, read, folder, writer)
                tally.new += 0 if read.fault else len(read.open)
                tally.resumed += 0 if read.fault else len(read.errand.phrases) - len(read.open)
        folder.finish(_lines(folder, errands, hashes, tally))
        return tally

    def _hand_over(
        self, image: NDArray[np.uint8], read: _Read, folder: AnswerFolder, writer: WriteBehind
    ) -> None:
        """Answer what is open on a picture; the answers go to the writer."""
        name = read.errand.picture.name
        try:
            for phrase, answer in zip(read.open, self._answers(image, read.open), strict=True):
                writer.submit(folder.save, _as_written(answer), name, read.sha256, phrase)
        except EngineError as error:
            raise EngineError(
                f"{name}: {error} (what was answered stays in {folder.path}; "
                "the same command goes on from there)"
            ) from error

    def _answers(self, image: NDArray[np.uint8], phrases: Sequence[str]) -> Iterator[Answer]:
        start = time.perf_counter()
        scene = self._segmenter.encode(image)
        last = time.perf_counter()
        encode_ms = 1e3 * (last - start)
        for result in self._segmenter.segment_each(scene, phrases, batch_size=self._rows):
            yield Answer(
                image=scene.image,
                result=result,
                options=self._segmenter.options,
                model=self._bundle.spec.name,
                backend=self._sessions.backend,
                backend_reason=self._sessions.reason,
                encode_ms=encode_ms,
                segment_ms=1e3 * (time.perf_counter() - last),
                random_weights=self._bundle.manifest.random_seed is not None,
            )
            last = time.perf_counter()


def _read(errand: Errand, folder: AnswerFolder) -> _Read:
    """Read a picture, unless all of its answers are there; one that cannot be used is an answer too."""
    name = errand.picture.name
    try:
        data = errand.picture.read_bytes()
    except OSError as error:
        return _Read(errand, "", (), None, f"{errand.picture} cannot be read: {error.strerror or error}")
    sha256 = hashlib.sha256(data).hexdigest()
    missing = tuple(each for each in errand.phrases if folder.record(name, sha256, each) is None)
    try:
        return _Read(errand, sha256, missing, read_picture(data, name=name) if missing else None)
    except InputError as error:
        return _Read(errand, sha256, missing, None, str(error))


def _as_written(answer: Answer) -> Answer:
    """Without what is not written, the map and the other candidates' masks: it may wait for the disk."""
    result = answer.result
    nothing = np.zeros((len(result.candidates), 0, 0), dtype=np.bool_)
    candidates = dataclasses.replace(result.candidates, masks=nothing)
    light = dataclasses.replace(result, mask=result.mask.copy(), heat=None, candidates=candidates)
    return dataclasses.replace(answer, result=light)


def _lines(
    folder: AnswerFolder, errands: Sequence[Errand], hashes: dict[str, str], tally: _Tally
) -> Iterator[dict[str, Any]]:
    """A line per question, in order, read back from the records; counts what matched."""
    for errand in errands:
        name = errand.picture.name
        if name in tally.failures:
            yield {"picture": name, "error": tally.failures[name]}
            continue
        for phrase in errand.phrases:
            document = folder.record(name, hashes[name], phrase)
            if document is None:
                raise InputError(
                    f"the answer to {phrase!r} on {name} went from {folder.path} while the run wrote there; "
                    "give the same command again"
                )
            tally.matched += document["matched"]
            yield {**document, "files": folder.files(name, phrase)}


def _progress(read: _Read) -> str:
    name = read.errand.picture.name
    if read.fault is not None:
        return f"{name} cannot be used"
    done = len(read.errand.phrases) - len(read.open)
    return f"{name}, {len(read.open)} to answer" + (f", {done} answered before" if done else "")


def _settings(bundle: Bundle, segmenter: Segmenter, sessions: BackendSessions) -> dict[str, Any]:
    """Everything that an answer depends on beside its picture and phrase."""
    files = {name: file.sha256 for name, file in sorted(bundle.manifest.files.items())}
    return {
        "format": 2,
        "refdiff": refdiff_version(),
        "model": bundle.spec.name,
        "precision": bundle.manifest.precision,
        "bundle": hashlib.sha256(repr(files).encode()).hexdigest(),
        "options": dataclasses.asdict(segmenter.options),
        "backend": sessions.backend,
    }
