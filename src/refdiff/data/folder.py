"""Samples of image files: the rows of a CSV file, and phrases for a folder of images.

The CSV file is UTF-8 with the header `image,phrase`: a file's name inside the image folder, and a phrase.
Only names and the CSV file are read here; an image is read when its sample is.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refdiff.contracts.plain_file import open_plain, read_plain
from refdiff.data.listing import IMAGE_SUFFIXES, list_images, shorten
from refdiff.data.sample import Sample, SampleList
from refdiff.errors import InputError
from refdiff.runtime.image import read_image
from refdiff.runtime.phrase import normalize_text

HEADER = ["image", "phrase"]


@dataclass(frozen=True, kw_only=True)
class PhraseRow:
    """A row of a CSV file."""

    where: str
    """The file and the line, for messages."""
    image: str
    """The image's name inside its folder; sub-folders are separated by "/"."""
    phrase: str
    """White space is collapsed."""


def unique_phrases(phrases: Sequence[str]) -> tuple[str, ...]:
    """Return the different phrases in order, with white space collapsed.

    Raises:
        InputError: no phrase, a single string, or a phrase that cannot be used.
    """
    if isinstance(phrases, str):
        raise InputError(f"got one text, {phrases!r}, expected a sequence of phrases; put it into a list")
    texts = tuple(dict.fromkeys(normalize_text(phrase) for phrase in phrases))
    if not texts:
        raise InputError(
            'got no phrase, expected one or more, e.g. "the red mug"; or a file of them (--phrases)'
        )
    return texts


def csv_dataset(
    images: Path, csv_file: Path, count: int | None = None, *, require_all_images: bool = False
) -> SampleList:
    """Pair images and phrases as a CSV file says, in its order.

    Args:
        images: the folder of the images.
        csv_file: the CSV file.
        count: only the first rows; None: all.
        require_all_images: refuse an image of the folder that the file does not name.

    Raises:
        InputError: the folder is empty or missing, the file is no such CSV file, or images and phrases do not
            match; or a phrase cannot be used.
    """
    rows = read_phrase_rows(csv_file)
    named = dict.fromkeys(row.image for row in rows)
    listed = list_images(images).images
    absent = [name for name in named if ".." in Path(name).parts or not os.path.lexists(images / name)]
    if not listed and len(absent) == len(named):
        raise InputError(f"{images} holds no images, expected some ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if absent:
        raise InputError(
            f"{csv_file} names {shorten(absent)}, not in {images}; correct the names or add the images"
        )
    unnamed = [name for name in listed if name not in named]
    if unnamed and require_all_images:
        raise InputError(
            f"{shorten(unnamed)} in {images} has no phrase in {csv_file}; add a line for each, or move them"
        )
    if count is not None and not 1 <= count <= len(rows):
        raise InputError(f"got count {count}, expected 1 to {len(rows)}, the phrases in {csv_file}")
    return SampleList(
        tuple(
            Sample(id=f"{row.where}: {row.image}", image=images / row.image, phrase=row.phrase)
            for row in rows[:count]
        )
    )


def read_phrase_rows(path: Path) -> list[PhraseRow]:
    """Read the rows of a CSV file of images and phrases.

    Raises:
        InputError: it cannot be read, is no such CSV file, or has a phrase that cannot be used.
    """
    expected = f"expected a CSV file of UTF-8 with the header {','.join(HEADER)}"
    try:
        with io.TextIOWrapper(open_plain(path), encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            if header != HEADER:
                raise InputError(f"{path} begins with {','.join(header)!r}, {expected}; correct it")
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}), {expected}") from error
    if not rows:
        raise InputError(f"{path} holds no phrase, only its header; add a line for each image")
    return [_check_row(path, line, row) for line, row in rows]


def _check_row(path: Path, line: int, row: Sequence[str]) -> PhraseRow:
    if len(row) != len(HEADER):
        raise InputError(
            f"{path}, line {line} has {len(row)} fields, expected {len(HEADER)}; "
            'put a phrase with a comma into quotes: "the mug, the red one"'
        )
    image, phrase = (field.strip() for field in row)
    if not image or not phrase:
        raise InputError(f"{path}, line {line} has no {'phrase' if image else 'image'}; fill it in")
    where = f"{path.name}, line {line}"
    try:
        return PhraseRow(where=where, image=image, phrase=normalize_text(phrase))
    except InputError as error:
        raise InputError(f"{where}: {image}: {error}") from error


def image_sample(image: Path, phrase: str) -> Sample:
    """Return a sample that holds an image file's bytes, so that decoding is part of the work.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return Sample(id=image.name, image=read_plain(image), phrase=phrase)
    except OSError as error:
        raise InputError(f"{image} cannot be read ({error.strerror}); expected an image file") from error


def check_images(samples: Iterable[Sample]) -> None:
    """Decode every image file once, so that none stops the work halfway.

    Raises:
        InputError: an image cannot be read; the message names the others that cannot.
    """
    paths = dict.fromkeys(sample.image for sample in samples if isinstance(sample.image, Path))
    failed = {path.name: fault for path in paths if (fault := _read_fault(path)) is not None}
    if failed:
        (_, first), *others = failed.items()
        more = f" (cannot be read either: {shorten([name for name, _ in others])})" if others else ""
        raise InputError(f"{first}{more}") from first


def _read_fault(path: Path) -> InputError | None:
    try:
        read_image(path)
    except InputError as error:
        return error
    return None
