"""Data sets to train on, made of a finished folder run: phrases are the classes.

    coco/          annotations.json, images/
    yolo-seg/      data.yaml, images/{train,val}/, labels/{train,val}/, sources.csv
    label-studio/  tasks.json, label_config.xml, images/

An image is copied as it is if a plain decoder reads the pixels that were segmented. Otherwise it is written
as PNG, upright: training code differs in whether it follows EXIF orientations, and the masks have to fit in
all of it. A phrase without a mask has no annotation. An image with a phrase that failed is left out: it would
be labeled in part.

A data set is written into a draft and takes its place at once; images are numbered in the order of the run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refdiff.batch.label_studio import label_config, prediction_task
from refdiff.batch.outline import outline
from refdiff.batch.result_store import EXPORTS
from refdiff.batch.summaries import coco_document
from refdiff.batch.work_list import Work
from refdiff.contracts.atomic_io import open_draft_folder, place_folder, report_write_errors
from refdiff.contracts.plain_file import read_plain
from refdiff.contracts.session import Bool
from refdiff.data.truth import require_eval
from refdiff.errors import InputError
from refdiff.runtime.image import png, read_image

COCO, YOLO, LABEL_STUDIO = EXPORTS

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}
"""Formats that are copied -> suffix: those that ultralytics reads."""

_FORMATS = tuple(name for name in _SUFFIXES if name != "MPO")  # Pillow's JPEG opens MPO

_ORIENTATION = 0x0112
"""EXIF's tag."""

_HELD_OUT_OF = 10
"""One of this many images is for validation, chosen by its hash: it stays there when others are added."""


@dataclass(frozen=True, kw_only=True)
class ExportCounts:
    """What a data set contains."""

    folder: Path
    images: int
    annotations: int
    without_mask: int
    """Phrases that have no annotation, since no mask matched or it was withheld."""
    left_out: int
    """Images with a phrase that failed."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """An image of the data set."""

    source: str
    """The image's name in the run."""
    held_out: bool
    """Whether it is for validation."""
    file: str
    """Its name in the data set."""
    lines: Sequence[Mapping[str, Any]]
    """Of `results.jsonl`, all of this image."""

    @property
    def found(self) -> list[Mapping[str, Any]]:
        """The lines with a mask."""
        return [line for line in self.lines if line["matched"] and line["area_px"]]


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a data set is made of."""

    folder: Path
    """The output folder of the run."""
    lines: Sequence[Mapping[str, Any]]
    """Of `results.jsonl`: those of an image follow each other."""
    work: Mapping[str, Work]
    """Image's name -> its file and hash."""

    @property
    def classes(self) -> dict[str, int]:
        """Phrase -> number from 0, in the order of the run."""
        phrases = dict.fromkeys(line["phrase"] for line in self.lines)
        return {phrase: number for number, phrase in enumerate(phrases)}

    def complete_images(self) -> dict[str, list[Mapping[str, Any]]]:
        """Return the lines of each image whose phrases did not fail."""
        grouped = ((name, list(lines)) for name, lines in groupby(self.lines, itemgetter("image")))
        return {name: lines for name, lines in grouped if not any("error" in line for line in lines)}

    def mask(self, line: Mapping[str, Any]) -> Bool:
        """Read the mask of a line: [y, x].

        Raises:
            InputError: its file is not the one that was written.
        """
        data = read_plain(self.folder / line["files"]["mask"])
        if hashlib.sha256(data).hexdigest() != line["sha256"]["mask"]:
            raise InputError(f"{line['files']['mask']} was changed during the run; repeat the command")
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(np.asarray(image) > 0)


def check_exports(kinds: Sequence[str], output: Path | None) -> None:
    """Refuse a kind that is not known, or whose package is missing, before any work.

    Raises:
        InputError: names the kind, or there is no output folder.
        MissingDependencyError: OpenCV is missing, which "yolo-seg" needs.
    """
    for kind in kinds:
        if kind not in EXPORTS:
            raise InputError(f"got the data set {kind!r}, expected one of {', '.join(EXPORTS)}; choose one")
    if kinds and output is None:
        raise InputError("got a data set to write and no output folder; name one (--output)")
    if YOLO in kinds:
        with require_eval(f"--export {YOLO}"):
            import cv2  # noqa: F401


def export_training_set(kind: str, run: FinishedRun) -> ExportCounts:
    """Write a data set into the output folder of its run; an earlier one is replaced.

    Args:
        kind: one of `EXPORTS`.
        run: the run.

    Raises:
        InputError: the folder cannot be written, or an image was changed during the run.
        MissingDependencyError: OpenCV is missing, which "yolo-seg" needs.
    """
    target, images = run.folder / kind, run.complete_images()
    held_out = _held_out(run.work[name].sha256 for name in images) if kind == YOLO else frozenset()
    with report_write_errors(target), open_draft_folder(target) as draft:
        pictures = []
        for part in ("train", "val") if kind == YOLO else ("",):
            (draft / "images" / part).mkdir(parents=True)
        for name, lines in images.items():
            work = run.work[name]
            for_validation = work.sha256 in held_out
            part = ("val" if for_validation else "train") if kind == YOLO else ""
            file = _place_image(work, draft / "images" / part)
            pictures.append(_Picture(source=name, held_out=for_validation, file=file, lines=lines))
        _WRITERS[kind](draft, run, pictures)
        place_folder(draft, target)
    total, found = sum(map(len, images.values())), sum(len(each.found) for each in pictures)
    return ExportCounts(
        folder=target,
        images=len(pictures),
        annotations=found,
        without_mask=total - found,
        left_out=len({line["image"] for line in run.lines}) - len(pictures),
    )


def _held_out(hashes: Iterable[str]) -> frozenset[str]:
    """Choose the images for validation; of two different images, one is for each purpose."""
    known = sorted(set(hashes))
    chosen = [each for each in known if int(each[:8], 16) % _HELD_OUT_OF == 0]
    if len(known) < 2:
        return frozenset()
    return frozenset(known[:1] if len(chosen) in (0, len(known)) else chosen)


def _place_image(work: Work, folder: Path) -> str:
    """Copy an image, or write the pixels that were segmented.

    Returns:
        Its new name, which is valid on every system and differs from all others without its suffix, too.
    """
    try:
        data = read_plain(work.path)
    except OSError as error:
        raise InputError(f"{work.name} cannot be read any more ({error}); repeat the command") from error
    if hashlib.sha256(data).hexdigest() != work.sha256:
        raise InputError(f"{work.name} was changed during the run; repeat the command")
    key = hashlib.sha256(os.fsencode(work.name)).hexdigest()[:10]
    stem = re.sub("[^A-Za-z0-9]+", "-", re.sub(r"\.[^./]*$", "", work.name)[-40:]).strip("-") or "image"
    pixels = read_image(data, name=work.name)
    suffix = _suffix_if_plain(data, pixels)
    file = f"{stem}-{key}{suffix or '.png'}"
    (folder / file).write_bytes(data if suffix else png(pixels))
    return file


def _suffix_if_plain(data: bytes, pixels: Any) -> str | None:
    """Return the suffix of an image whose stored pixels are those that were segmented, otherwise None."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            suffix = _SUFFIXES[image.format or ""]
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            plain = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, LookupError, EOFError):
        return None
    return suffix if upright and np.array_equal(plain, pixels) else None


def _write_coco(folder: Path, _: FinishedRun, pictures: Sequence[_Picture]) -> None:
    document = coco_document(line for each in pictures for line in each.lines)
    files = {each.source: each.file for each in pictures}
    for image in document["images"]:
        image.update(file_name=files[image["file_name"]], original_name=image["file_name"])
    (folder / "annotations.json").write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")


def _write_yolo(folder: Path, run: FinishedRun, pictures: Sequence[_Picture]) -> None:
    """Write labels, `data.yaml` and the names that the images had; see ultralytics' `verify_image_label`."""
    classes, sources = run.classes, io.StringIO()
    table = csv.writer(sources, lineterminator="\n")
    table.writerow(("file", "image"))
    for part in ("train", "val"):
        (folder / "labels" / part).mkdir(parents=True)
    for each in pictures:
        part = "val" if each.held_out else "train"
        rows = [_yolo_row(classes[line["phrase"]], run.mask(line)) for line in each.found]
        label = (folder / "labels" / part / each.file).with_suffix(".txt")
        label.write_text("".join(f"{row}\n" for row in rows), encoding="ascii")
        table.writerow((f"images/{part}/{each.file}", each.source))
    names = "".join(f"  {number}: {_quoted(phrase)}\n" for phrase, number in classes.items())
    held_out = any(each.held_out for each in pictures)
    note = "" if held_out else "# without another image, validation uses the same\n"
    validation = "val" if held_out else "train"
    yaml = f"{note}train: images/train\nval: images/{validation}\nnames:\n{names}"
    (folder / "data.yaml").write_text(yaml, encoding="utf-8")
    (folder / "sources.csv").write_text(sources.getvalue(), encoding="utf-8", errors="surrogateescape")


def _yolo_row(number: int, mask: Bool) -> str:
    """Return class and corners: x, y of each, 0..1."""
    corners = outline(mask) / (mask.shape[1], mask.shape[0])
    return " ".join((str(number), *(f"{value:.6f}" for value in corners.ravel())))


def _quoted(text: str) -> str:
    """Return a text in YAML's double quotes, with everything that is not printable escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(each if each.isprintable() else f"\\U{ord(each):08X}" for each in escaped) + '"'


def _write_label_studio(folder: Path, run: FinishedRun, pictures: Sequence[_Picture]) -> None:
    """Write tasks with predictions, one after the other, and the labeling interface that shows them."""
    with (folder / "tasks.json").open("w", encoding="utf-8") as stream:
        for number, each in enumerate(pictures):
            stream.write("[\n" if number == 0 else ",\n")
            answers = ((line, run.mask(line)) for line in each.found)
            json.dump(prediction_task(each.file, each.source, answers), stream, allow_nan=False)
        stream.write("\n]\n" if pictures else "[]\n")
    (folder / "label_config.xml").write_text(label_config(run.classes), encoding="utf-8")


_WRITERS = {COCO: _write_coco, YOLO: _write_yolo, LABEL_STUDIO: _write_label_studio}
