"""Samples of image files: a folder's images with every phrase, or the rows of a CSV file.

The CSV file is UTF-8 with the header `image,phrase`: a file's name inside the image folder, and a phrase.
Only names and the CSV file are read here; an image is read when its sample is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from refdiff.data.sample import Sample, SampleList
from refdiff.errors import InputError
from refdiff.runtime.image import read_image
from refdiff.runtime.phrase import normalize_text

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Files that count as images of a folder; a CSV file may name any file."""

HEADER = ["image", "phrase"]

_SHOWN = 3
"""Names that a message lists; further ones are counted."""


def folder_dataset(images: Path, phrases: Sequence[str]) -> SampleList:
    """Pair each image with each phrase.

    Args:
        images: an image file, or a folder of images.
        phrases: white space is collapsed, and equal phrases count once.

    Raises:
        InputError: no image or phrase, or a phrase that cannot be used.
    """
    if isinstance(phrases, str):
        raise InputError(f"got one text, {phrases!r}, expected a sequence of phrases; put it into a list")
    texts = tuple(dict.fromkeys(normalize_text(phrase) for phrase in phrases))
    if not texts:
        raise InputError(
            'got no phrase, expected one or more, e.g. "the red mug"; or a file of them (--phrases)'
        )
    paths = [images / name for name in image_names(images)] if images.is_dir() else [images]
    return SampleList(
        tuple(
            Sample(id=f"{path.name}: {phrase}", image=path, phrase=phrase)
            for path in paths
            for phrase in texts
        )
    )


def csv_dataset(
    images: Path, csv_file: Path, count: int | None = None, *, require_all_images: bool = False
) -> SampleList:
    """Pair images and phrases as a CSV file says, in its order; white space in phrases is collapsed.

    Args:
        images: the folder of the images.
        csv_file: the CSV file.
        count: only the first rows; None: all.
        require_all_images: refuse an image of the folder that the file does not name.

    Raises:
        InputError: the folder is empty or missing, the file is no such CSV file, or images and phrases do not
            match; or a phrase cannot be used.
    """
    rows = _rows(csv_file)
    named = [image for _, image, _ in rows]
    unnamed = sorted(set(image_names(images, csv_file, named)) - set(named))
    if unnamed and require_all_images:
        raise InputError(
            f"{_shorten(unnamed)} in {images} has no phrase in {csv_file}; add a line for each, or move them"
        )
    if count is not None and not 1 <= count <= len(rows):
        raise InputError(f"got count {count}, expected 1 to {len(rows)}, the phrases in {csv_file}")
    return SampleList(
        tuple(
            _sample(f"{csv_file.name}, line {line}: {image}", images / image, phrase)
            for line, image, phrase in rows[:count]
        )
    )


def _sample(name: str, image: Path, phrase: str) -> Sample:
    try:
        return Sample(id=name, image=image, phrase=normalize_text(phrase))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _rows(path: Path) -> list[tuple[int, str, str]]:
    """Read line number, image and phrase of each row."""
    expected = f"expected a CSV file of UTF-8 with the header {','.join(HEADER)}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
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


def _check_row(path: Path, line: int, row: Sequence[str]) -> tuple[int, str, str]:
    if len(row) != len(HEADER):
        raise InputError(
            f"{path}, line {line} has {len(row)} fields, expected {len(HEADER)}; "
            'put a phrase with a comma into quotes: "the mug, the red one"'
        )
    image, phrase = (field.strip() for field in row)
    if not image or not phrase:
        raise InputError(f"{path}, line {line} has no {'phrase' if image else 'image'}; fill it in")
    return line, image, phrase


def image_sample(image: Path, phrase: str) -> Sample:
    """Return a sample that holds an image file's bytes, so that decoding is part of the work.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return Sample(id=image.name, image=image.read_bytes(), phrase=phrase)
    except OSError as error:
        raise InputError(f"{image} cannot be read ({error.strerror}); expected an image file") from error


def image_names(images: Path, csv_file: Path | None = None, named: Sequence[str] = ()) -> list[str]:
    """List the images of a folder by file name, sorted.

    Args:
        images: the folder; folders in it are ignored.
        csv_file: the file that names images, for messages.
        named: files of the folder that it names, whatever their suffix.

    Raises:
        InputError: the folder is missing or unreadable, has no images, or lacks a named file.
    """
    if not images.is_dir():
        what = "is not a folder" if images.exists() else "does not exist"
        raise InputError(f"{images} {what}, expected a folder of images; check the path")
    try:
        files = {path.name for path in images.iterdir() if path.is_file()}
    except OSError as error:
        raise InputError(f"{images} cannot be read ({error.strerror}); check its permissions") from error
    found = {name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    if not found and files.isdisjoint(named):
        raise InputError(f"{images} holds no images, expected some ({', '.join(sorted(IMAGE_SUFFIXES))})")
    absent = [name for name in dict.fromkeys(named) if name not in files]
    if absent:
        raise InputError(
            f"{csv_file} names {_shorten(absent)}, not in {images}; correct the names or add the images"
        )
    return sorted(found)


def phrases_by_file(samples: Iterable[Sample]) -> dict[Path, tuple[str, ...]]:
    """Group the phrases of samples by image file, in order; equal phrases of a file count once."""
    grouped: dict[Path, dict[str, None]] = {}
    for sample in samples:
        if isinstance(sample.image, Path):
            grouped.setdefault(sample.image, {})[sample.phrase] = None
    return {path: tuple(phrases) for path, phrases in grouped.items()}


def check_images(samples: Iterable[Sample]) -> None:
    """Decode every image file once, so that none stops the work halfway.

    Raises:
        InputError: an image cannot be read; the message names the others that cannot.
    """
    paths = dict.fromkeys(sample.image for sample in samples if isinstance(sample.image, Path))
    failed = {path.name: fault for path in paths if (fault := _read_fault(path)) is not None}
    if failed:
        (_, first), *others = failed.items()
        more = f" (cannot be read either: {_shorten([name for name, _ in others])})" if others else ""
        raise InputError(f"{first}{more}") from first


def _read_fault(path: Path) -> InputError | None:
    try:
        read_image(path)
    except InputError as error:
        return error
    return None


def _shorten(names: Sequence[str]) -> str:
    """List a few names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
