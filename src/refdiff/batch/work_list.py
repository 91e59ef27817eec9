"""The work of a batch run: each image with its phrases, and what the run will not look at."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refdiff.batch.result_store import check_result_folder
from refdiff.data.folder import (
    PhraseRow,
    describe_skipped,
    list_images,
    read_phrase_rows,
    shorten,
    unique_phrases,
)
from refdiff.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Work:
    """An image file, its phrases, and which of them have no result yet."""

    name: str
    """The file's name; in a sub-folder, its path relative to the image folder, with "/"."""
    path: Path
    phrases: tuple[str, ...]
    sha256: str = ""
    """Hash of the file; empty until it has been read."""
    missing: tuple[str, ...] = ()
    pixels: NDArray[np.uint8] | None = None
    """[y, x, 3] RGB; None if no phrase is missing, or the image cannot be used."""
    fault: str | None = None
    """Reason why the image cannot be used."""

    @property
    def summary(self) -> str:
        """The image's name and what is to be done, for progress reports."""
        if self.fault is not None:
            return f"{self.name} cannot be used"
        done = len(self.phrases) - len(self.missing)
        return f"{self.name}, {len(self.missing)} phrases" + (f", {done} done before" if done else "")


@dataclass(frozen=True, kw_only=True)
class WorkList:
    """All images of a run, in order."""

    items: tuple[Work, ...]
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Reason -> names of files and folders that the run passes over."""


def plan_work(
    image: Path, phrases: Sequence[str] | Path, *, output: Path | None, recursive: bool = False
) -> WorkList:
    """Collect the phrases of each image; nothing is read but names, first bytes and a CSV file of phrases.

    Args:
        image: an image file, or a folder of images.
        phrases: used with each image; or a CSV file with the header `image,phrase`.
        output: the output folder; not searched for images.
        recursive: search sub-folders.

    Raises:
        InputError: no image or phrase, a phrase that cannot be used, or an output that cannot be written.
    """
    _check_output(image, phrases, output)
    if isinstance(phrases, Path):
        return _plan_rows(image, phrases, output, recursive=recursive)
    texts = unique_phrases(phrases)
    if not image.is_dir():
        return WorkList(items=(Work(name=image.name, path=image, phrases=texts),))
    listing = list_images(image, recursive=recursive, exclude=output)
    if not listing.images:
        seen = "; ".join(describe_skipped(listing.skipped))
        raise InputError(f"{image} holds no images, expected some" + (f" ({seen})" if seen else ""))
    items = tuple(Work(name=name, path=image / name, phrases=texts) for name in listing.images)
    return WorkList(items=items, skipped=listing.skipped)


def _check_output(image: Path, phrases: Sequence[str] | Path, output: Path | None) -> None:
    if output is not None:
        if output.suffix.lower() == ".png":
            raise InputError(f"got output {output}, expected a folder for many results; name one")
        check_result_folder(output)
    elif image.is_dir() or isinstance(phrases, Path):
        raise InputError("got a folder of images and no output folder; name one (--output)")


def _plan_rows(image: Path, csv_file: Path, output: Path | None, *, recursive: bool) -> WorkList:
    rows = read_phrase_rows(csv_file)
    listing = list_images(image, recursive=recursive, exclude=output)
    items = _group(rows, image)
    absent = [item.name for item in items if item.fault is not None]
    if len(absent) == len(items):
        raise InputError(
            f"{csv_file} names {shorten(absent)}, not in {image}; correct the names or add the images"
        )
    named = {item.name for item in items}
    unnamed = tuple(name for name in listing.images if name not in named)
    skipped = {**listing.skipped, **({f"no phrase in {csv_file}": unnamed} if unnamed else {})}
    return WorkList(items=items, skipped=skipped)


def _group(rows: Sequence[PhraseRow], folder: Path) -> tuple[Work, ...]:
    """Group the phrases by image, in order; equal phrases of an image count once."""
    grouped: dict[str, Work] = {}
    for row in rows:
        known = grouped.get(row.image)
        if known is None:
            path, fault = folder / row.image, None
            if Path(row.image).is_absolute() or ".." in re.split(r"[/\\]", row.image):
                fault = f"{row.image} ({row.where}) is outside {folder}; name a file inside it"
            elif not os.path.lexists(path):
                fault = f"{row.image} ({row.where}) is no file in {folder}; correct the name or add the image"
            grouped[row.image] = Work(name=row.image, path=path, phrases=(row.phrase,), fault=fault)
        elif row.phrase not in known.phrases:
            grouped[row.image] = dataclasses.replace(known, phrases=(*known.phrases, row.phrase))
    return tuple(grouped.values())
