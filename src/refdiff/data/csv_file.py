"""Samples of a CSV file of UTF-8 with the header `image,phrase`.

The first column is a file's name inside an image folder, the second a phrase about that image.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from refdiff.data.folder import image_names, shorten
from refdiff.data.sample import Sample, SampleList
from refdiff.errors import InputError
from refdiff.runtime.phrase import checked_text

HEADER = ["image", "phrase"]


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
            f"{shorten(unnamed)} in {images} has no phrase in {csv_file}; add a line for each, or move them"
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
        return Sample(id=name, image=image, phrase=checked_text(phrase))
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
