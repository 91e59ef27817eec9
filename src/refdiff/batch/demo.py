"""`demo`: the built-in bundle on fixed held-out scenes, with pictures to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.accuracy.metrics import iou
from refdiff.batch.contact_sheet import SheetEntry, contact_sheet
from refdiff.batch.prediction import Answer, ask
from refdiff.contracts.atomic_io import write_files
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import options_for
from refdiff.contracts.progress import Progress, silent
from refdiff.data.synthetic import DEMO_SEEDS, Question, questions
from refdiff.engines.factory import open_sessions
from refdiff.errors import InputError
from refdiff.loading import segmenter_of
from refdiff.runtime.image import png
from refdiff.runtime.overlay import overlay
from refdiff.runtime.pipeline import Segmenter

SHEET_NAME = "sheet.png"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One sample scene and its answer."""

    question: Question
    answer: Answer
    picture: Path
    """The overlay that was written."""

    @property
    def iou(self) -> float:
        """Of the answer with the truth."""
        return iou(self.answer.result.mask, self.question.truth)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        document = self.answer.to_json()
        del document["mask"]
        return {"seed": self.question.seed, "iou": self.iou, "picture": str(self.picture), **document}


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """All sample scenes."""

    scenes: tuple[Shown, ...]
    sheet: Path

    @property
    def miou(self) -> float:
        """Mean IoU."""
        return sum(shown.iou for shown in self.scenes) / len(self.scenes)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "miou": self.miou,
            "sheet": str(self.sheet),
            "backend": self.scenes[0].answer.backend,
            "backend_reason": self.scenes[0].answer.backend_reason,
            "scenes": [shown.to_json() for shown in self.scenes],
        }


def demo(
    output: Path | str = "demo-out",
    *,
    bundle: Path | str = "mini",
    backend: str = "auto",
    variant: str = "edge",
    mode: str = "full",
    threads: int | None = None,
    progress: Progress | None = None,
) -> DemoReport:
    """Segment the sample scenes and write an overlay of each, and one sheet of all, into a folder.

    Args:
        output: the folder; made if it is not there. Pictures of an earlier demo in it are replaced.
        bundle: "mini", the built-in one, or another made from the miniature.
        backend: as in `load`.
        variant: as in `load`.
        mode: as in `load`.
        threads: as in `load`.
        progress: told one line per scene.

    Raises:
        InputError: an unknown option, or a folder that cannot be written.
        BundleError: the bundle is missing, damaged or newer.
        MissingDependencyError: the back-end's package is not installed.
    """
    folder, tell = Path(output), progress or silent
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder; choose another place")
    opened = find_bundle(bundle)
    check_trained(opened, allow_random_weights=False)
    options = options_for(opened.spec, variant=variant, mode=mode)
    sessions = open_sessions(opened, backend=backend, threads=threads)
    shown: list[Shown] = []
    with segmenter_of(opened, sessions, options) as segmenter:
        tell("loading the graphs")
        _warm_up(segmenter)
        for number, asked in enumerate(questions(DEMO_SEEDS), start=1):
            tell(f"scene {number}/{len(DEMO_SEEDS)}: {asked.phrase}")
            answer = ask(segmenter, asked.image, asked.phrase, model=opened.spec.name, sessions=sessions)
            shown.append(Shown(question=asked, answer=answer, picture=folder / f"scene-{number}.png"))
    report = DemoReport(scenes=tuple(shown), sheet=folder / SHEET_NAME)
    _write(folder, report)
    return report


def _warm_up(segmenter: Segmenter) -> None:
    """Load every graph, so that the times shown are of segmenting alone."""
    asked = next(questions(DEMO_SEEDS))
    segmenter.segment(segmenter.encode(asked.image), asked.phrase)


def _write(folder: Path, report: DemoReport) -> None:
    """All pictures or none; a folder that was made for them goes too when they cannot be written."""
    entries = [
        SheetEntry(image=shown.answer.image, result=shown.answer.result, iou=shown.iou)
        for shown in report.scenes
    ]
    files = {shown.picture: png(overlay(shown.answer.image, shown.answer.result)) for shown in report.scenes}
    files[report.sheet] = png(contact_sheet(entries))
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}; choose another place") from error
    try:
        write_files(files, overwrite=True)
    except BaseException:
        if is_new:
            folder.rmdir()
        raise
