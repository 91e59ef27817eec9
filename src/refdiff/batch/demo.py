"""`demo`: the built-in bundle on fixed held-out scenes, with overlays and a contact sheet."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refdiff.accuracy.metrics import iou
from refdiff.batch.prediction import Prediction, predict
from refdiff.contracts.atomic_io import write_files
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, Step, silent
from refdiff.data.sample import Sample, true_mask
from refdiff.data.synthetic import demo_samples
from refdiff.engines.factory import BackendSessions
from refdiff.errors import InputError
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime.image import png
from refdiff.runtime.overlay import draw_answer, heat_overlay
from refdiff.runtime.segmentation import Segmentation

SHEET_NAME = "sheet.png"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The prediction for one demo scene."""

    sample: Sample
    prediction: Prediction
    scene: Path
    """The file of the image as it was rendered."""
    overlay: Path
    """The overlay's file."""

    @property
    def iou(self) -> float:
        """IoU of the predicted and the true mask, 0..1."""
        return iou(self.prediction.result.mask, true_mask(self.sample))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        document = self.prediction.to_json()
        del document["mask"]
        files = {"image": str(self.scene), "overlay": str(self.overlay)}
        return {"seed": self.sample.seed, "iou": self.iou, **files, **document}


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """The results on all demo scenes."""

    scenes: tuple[DemoResult, ...]
    sheet: Path

    @property
    def miou(self) -> float:
        """Mean IoU, 0..1."""
        return sum(each.iou for each in self.scenes) / len(self.scenes)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "model": self.scenes[0].prediction.to_json()["model"],
            "miou": self.miou,
            "sheet": str(self.sheet),
            "backend": self.scenes[0].prediction.backend,
            "backend_reason": self.scenes[0].prediction.backend_reason,
            "scenes": [each.to_json() for each in self.scenes],
        }


def demo(
    output: Path | str = "demo-out",
    *,
    bundle: Path | str = "mini",
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    progress: Progress | None = None,
) -> DemoReport:
    """Segment the demo scenes and write each, its overlay, and one contact sheet to a folder.

    Args:
        output: the folder; created if it is missing. Files of an earlier demo are replaced.
        bundle: "mini", the built-in one, or another that was exported from the miniature.
        options: what is computed.
        backend: where and how the graphs run.
        progress: called with one line for each scene.

    Raises:
        InputError: an unknown option, or a folder that cannot be written.
        BundleError: the bundle is missing, damaged or newer.
        MissingDependencyError: the back-end's package is not installed.
    """
    folder, report_line = Path(output), progress or silent
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder; choose another place")
    opened = find_bundle(bundle)
    check_trained(opened, allow_random_weights=False)
    with _writable(folder):
        return _demo(folder, opened, options, open_backend(opened, backend), report_line)


def _demo(
    folder: Path, opened: Bundle, options: RunOptions, sessions: BackendSessions, report_line: Progress
) -> DemoReport:
    samples, results = demo_samples(), list[DemoResult]()
    with segmenter_of(opened, sessions, options.pipeline_options(opened.spec)) as segmenter:
        report_line("loading the graphs")
        # A first run loads every graph, so that the times shown are of segmenting alone.
        segmenter.segment(segmenter.encode(samples[0].read()), samples[0].phrase)
        for number, sample in enumerate(samples, start=1):
            line = f"scene {number}/{len(samples)}: {sample.phrase}"
            report_line(Step(line, done=number - 1, total=len(samples), unit="scenes"))
            prediction = predict(segmenter, sample.read(), sample.phrase, bundle=opened, sessions=sessions)
            scene, painted = folder / "scenes" / f"scene-{number}.png", folder / f"scene-{number}.overlay.png"
            results.append(DemoResult(sample=sample, prediction=prediction, scene=scene, overlay=painted))
    report = DemoReport(scenes=tuple(results), sheet=folder / SHEET_NAME)
    _write(report)
    return report


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Make the folder before the work, and remove a new one if the work fails.

    Raises:
        InputError: the folder cannot be made or written.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror}; choose another place (--output)"
        ) from error
    try:
        yield
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(report: DemoReport) -> None:
    """Write all files or none."""
    entries = [
        SheetEntry(image=each.prediction.image, result=each.prediction.result, iou=each.iou)
        for each in report.scenes
    ]
    files = {each.overlay: png(each.prediction.result.overlay()) for each in report.scenes}
    files |= {each.scene: png(each.prediction.image) for each in report.scenes}
    files[report.sheet] = png(contact_sheet(entries))
    report.scenes[0].scene.parent.mkdir(exist_ok=True)
    write_files(files, overwrite=True)


Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

PANELS = ("image", "attention", "answer")

_COLUMNS = 2
_PANEL_WH = (256, 208)
_GAP, _MARGIN = 8, 28
_HEADING, _CAPTION = 40, 24  # heights in px
_PAGE: Color = (246, 246, 248)
_CARD: Color = (228, 229, 234)
_INK: Color = (28, 29, 34)
_PALE: Color = (104, 108, 120)
_GOOD: Color = (20, 120, 60)
_POOR: Color = (178, 44, 40)
_GOOD_FROM = 0.5  # IoU; the usual threshold of a hit


@dataclass(frozen=True, kw_only=True)
class SheetEntry:
    """A scene of the sheet."""

    image: Picture
    result: Segmentation
    iou: float
    """IoU of the predicted and the true mask, 0..1."""


def contact_sheet(entries: Sequence[SheetEntry]) -> Picture:
    """Lay the entries out in columns, row by row."""
    cell_w = len(PANELS) * _PANEL_WH[0] + (len(PANELS) - 1) * _GAP
    cell_h = _HEADING + _PANEL_WH[1] + _CAPTION
    columns = min(_COLUMNS, max(len(entries), 1))
    rows = -(-len(entries) // columns)
    width, height = (n * (size + _MARGIN) + _MARGIN for n, size in ((columns, cell_w), (rows, cell_h)))
    page = Image.new("RGB", (width, height), _PAGE)
    for number, entry in enumerate(entries):
        row, column = divmod(number, columns)
        corner = (_MARGIN + column * (cell_w + _MARGIN), _MARGIN + row * (cell_h + _MARGIN))
        _draw_entry(page, corner, cell_w, entry)
    return np.asarray(page)


def _draw_entry(page: Image.Image, corner: tuple[int, int], width: int, entry: SheetEntry) -> None:
    """Draw the phrase and its IoU, and below them the three panels with their captions."""
    left, top = corner
    draw = ImageDraw.Draw(page)
    wrong = "" if entry.iou >= _GOOD_FROM else "wrong: "
    verdict = "no mask" if entry.result.index is None else f"{wrong}IoU {entry.iou:.2f}"
    font = _font(24)
    ink = _GOOD if entry.iou >= _GOOD_FROM else _POOR
    verdict_w = font.getlength(verdict)
    draw.text((left + width - verdict_w, top + 4), verdict, font=font, fill=ink)
    phrase = _shorten_to(f"“{entry.result.phrase}”", font, width - verdict_w - 2 * _GAP)
    draw.text((left, top + 4), phrase, font=font, fill=_INK)
    for number, (name, panel) in enumerate(zip(PANELS, _panels(entry), strict=True)):
        x = left + number * (_PANEL_WH[0] + _GAP)
        page.paste(_center_in_box(panel), (x, top + _HEADING))
        caption = (x + _PANEL_WH[0] / 2, top + _HEADING + _PANEL_WH[1] + 4)
        draw.text(caption, name, font=_font(15), fill=_PALE, anchor="ma")


def _panels(entry: SheetEntry) -> tuple[Picture, Picture | None, Picture]:
    result = entry.result
    heat = None if result.heat is None else heat_overlay(entry.image, result.heat)
    return entry.image, heat, draw_answer(entry.image, result.mask)


def _center_in_box(panel: Picture | None) -> Image.Image:
    """Center a panel in a box of the common size; the box is empty if the mode has no such panel."""
    box_w, box_h = _PANEL_WH
    box = Image.new("RGB", _PANEL_WH, _CARD)
    if panel is None:
        ImageDraw.Draw(box).text((box_w / 2, box_h / 2), "not in this mode", _PALE, _font(15), anchor="mm")
        return box
    height, width = panel.shape[:2]
    scale = min(box_w / width, box_h / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = Image.fromarray(panel).resize(size, Image.Resampling.LANCZOS)
    box.paste(scaled, ((box_w - size[0]) // 2, (box_h - size[1]) // 2))
    return box


def _shorten_to(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Shorten a text until it fits."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
