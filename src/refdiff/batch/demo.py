"""`demo`: the built-in bundle on fixed held-out scenes, with overlays and a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.accuracy.metrics import iou
from refdiff.batch.contact_sheet import SheetEntry, contact_sheet
from refdiff.batch.prediction import Prediction, predict
from refdiff.contracts.atomic_io import write_files
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, silent
from refdiff.data.sample import Sample, true_mask
from refdiff.data.synthetic import demo_samples
from refdiff.errors import InputError
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime.image import png
from refdiff.runtime.overlay import overlay

SHEET_NAME = "sheet.png"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The prediction for one demo scene."""

    sample: Sample
    prediction: Prediction
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
        return {"seed": self.sample.seed, "iou": self.iou, "picture": str(self.overlay), **document}


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
    """Segment the demo scenes and write an overlay of each, and one contact sheet, to a folder.

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
    sessions = open_backend(opened, backend)
    samples, results = demo_samples(), list[DemoResult]()
    with segmenter_of(opened, sessions, options.pipeline_options(opened.spec)) as segmenter:
        report_line("loading the graphs")
        # A first run loads every graph, so that the times shown are of segmenting alone.
        segmenter.segment(segmenter.encode(samples[0].read()), samples[0].phrase)
        for number, sample in enumerate(samples, start=1):
            report_line(f"scene {number}/{len(samples)}: {sample.phrase}")
            prediction = predict(segmenter, sample.read(), sample.phrase, bundle=opened, sessions=sessions)
            overlay_path = folder / f"scene-{number}.png"
            results.append(DemoResult(sample=sample, prediction=prediction, overlay=overlay_path))
    report = DemoReport(scenes=tuple(results), sheet=folder / SHEET_NAME)
    _write(folder, report)
    return report


def _write(folder: Path, report: DemoReport) -> None:
    """Write all files or none; a folder that was created for them is removed if they cannot be written."""
    entries = [
        SheetEntry(image=each.prediction.image, result=each.prediction.result, iou=each.iou)
        for each in report.scenes
    ]
    files = {
        each.overlay: png(overlay(each.prediction.image, each.prediction.result)) for each in report.scenes
    }
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
