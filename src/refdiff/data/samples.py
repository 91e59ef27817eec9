"""What `calibrate` asks the pipeline: the miniature's scenes, or somebody's pictures and phrases.

The phrases are a CSV file of UTF-8 with the header `image,phrase`: a file's name inside the picture folder,
and what is asked of it. Everything is checked here, before any graph runs.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.atomic_io import hash_file
from refdiff.data.synthetic import HELD_OUT_FROM, Question, questions
from refdiff.errors import InputError
from refdiff.runtime.image import read_picture
from refdiff.runtime.phrase import read_phrase
from refdiff.runtime.tokenizer import Tokenizer

SCENES_FROM = 500_000
"""Seed of the first scene: beyond those the miniature was trained on (0 to 19,999), and before the held-out
ones, on which what is calibrated here is judged."""

SCENES = 32

HEADER = ["image", "phrase"]

PICTURE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Files of a picture folder that need a phrase; a phrase may name any file."""

_SHOWN = 3
"""Names that a message lists; the others it counts."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One picture and one phrase."""

    id: str
    """Unlike any other of its series."""
    picture: str
    """What tells pictures apart."""
    phrase: str
    read: Callable[[], NDArray[np.uint8]]
    """Gives the picture [y, x, 3] RGB."""

    def check_phrase(self, tokenizer: Tokenizer) -> None:
        """Refuse a phrase that the pipeline would refuse, minutes later.

        Raises:
            InputError: names the question.
        """
        try:
            tokenizer.check_length(read_phrase(self.phrase, word_boundaries=True).text)
        except InputError as error:
            raise InputError(f"{self.id}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Series:
    """Questions in their order, and what they were made from."""

    asked: tuple[Asked, ...]
    settings: dict[str, Any]
    """Two series of the same settings ask the same."""

    @property
    def pictures(self) -> int:
        """How many different ones there are."""
        return len({each.picture for each in self.asked})

    def check_phrases(self, tokenizer: Tokenizer) -> None:
        """As `Asked.check_phrase`, for all of them."""
        for each in self.asked:
            each.check_phrase(tokenizer)


def scene_series(count: int, seed: int) -> Series:
    """Scenes of the miniature.

    Args:
        count: how many; a seed whose scene has no phrase is passed over.
        seed: of the first.

    Raises:
        InputError: no scenes, or seeds that reach the held-out ones.
    """
    if count < 1 or seed < 0:
        raise InputError(f"got count {count} and seed {seed}, expected 1 and 0 or more")
    found = list(islice(questions(range(seed, HELD_OUT_FROM)), count))
    if len(found) < count:
        raise InputError(
            f"{count} scenes from seed {seed} reach {HELD_OUT_FROM}, from where on scenes are for judging; "
            f"take an earlier seed, such as {SCENES_FROM}"
        )
    return Series(
        asked=tuple(_scene(each) for each in found),
        settings={"kind": "scenes", "seed": seed, "count": count},
    )


def picture_series(images: Path, phrases: Path, count: int | None) -> Series:
    """Somebody's pictures and phrases, in the order of the phrases.

    Args:
        images: a folder of pictures.
        phrases: the CSV file.
        count: only the first phrases; None: all.

    Raises:
        InputError: the folder is empty or missing, the file is none of these, a picture cannot be read, or
            pictures and phrases do not match.
    """
    rows = phrase_rows(phrases)
    _match(images, phrases, [image for _, image, _ in rows])
    if count is not None and not 1 <= count <= len(rows):
        raise InputError(f"got count {count}, expected 1 to {len(rows)}, the phrases in {phrases}")
    chosen = rows[:count]
    hashes = _check_pictures([images / name for name in dict.fromkeys(image for _, image, _ in chosen)])
    digest = hashlib.sha256()
    for _, image, phrase in chosen:
        digest.update(f"{hashes[images / image]} {image}\n{phrase}\n".encode())
    return Series(
        asked=tuple(
            Asked(
                id=f"{phrases.name}, line {line}: {image}",
                picture=hashes[images / image],
                phrase=phrase,
                read=partial(read_picture, images / image),
            )
            for line, image, phrase in chosen
        ),
        settings={"kind": "pictures", "count": len(chosen), "sha256": digest.hexdigest()},
    )


def _scene(question: Question) -> Asked:
    name = f"scene {question.seed}"
    return Asked(id=name, picture=name, phrase=question.phrase, read=lambda: question.image)


def phrase_rows(path: Path) -> list[tuple[int, str, str]]:
    """Line, image and phrase of each row of a file of phrases.

    Raises:
        InputError: it is none of these, or holds no phrase.
    """
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
        raise InputError(f"{path} holds no phrase, only its header; add a line for each picture")
    return [_row(path, line, row) for line, row in rows]


def _row(path: Path, line: int, row: Sequence[str]) -> tuple[int, str, str]:
    if len(row) != len(HEADER):
        raise InputError(
            f"{path}, line {line} has {len(row)} fields, expected {len(HEADER)}; "
            'put a phrase with a comma into quotes: "the mug, the red one"'
        )
    image, phrase = (field.strip() for field in row)
    if not image or not phrase:
        raise InputError(f"{path}, line {line} has no {'phrase' if image else 'image'}; fill it in")
    return line, image, phrase


def _match(images: Path, phrases: Path, named: Sequence[str]) -> None:
    """Refuse phrases without picture, and pictures without phrase."""
    pictures = pictures_of(images, phrases, named)
    silent = sorted(set(pictures) - set(named))
    if silent:
        raise InputError(
            f"{_some(silent)} in {images} has no phrase in {phrases}; add a line for each, or move it away"
        )


def pictures_of(images: Path, phrases: Path | None = None, named: Sequence[str] = ()) -> list[str]:
    """Names of the pictures in a folder, sorted.

    Args:
        images: the folder; folders in it are not looked into.
        phrases: the file that names pictures.
        named: files of the folder that it names, pictures by their suffix or not.

    Raises:
        InputError: the folder is missing or unreadable, has no pictures, or lacks a named file.
    """
    if not images.is_dir():
        what = "is not a folder" if images.exists() else "does not exist"
        raise InputError(f"{images} {what}, expected a folder of pictures; check the path")
    try:
        files = {path.name for path in images.iterdir() if path.is_file()}
    except OSError as error:
        raise InputError(f"{images} cannot be read ({error.strerror}); check its permissions") from error
    pictures = {name for name in files if Path(name).suffix.lower() in PICTURE_SUFFIXES}
    if not pictures and files.isdisjoint(named):
        raise InputError(f"{images} holds no pictures, expected some ({', '.join(sorted(PICTURE_SUFFIXES))})")
    absent = [name for name in dict.fromkeys(named) if name not in files]
    if absent:
        raise InputError(
            f"{phrases} names {_some(absent)}, not in {images}; correct the names or add the pictures"
        )
    return sorted(pictures)


def _check_pictures(paths: Sequence[Path]) -> dict[Path, str]:
    """The hash of each picture; all are decoded, so that none stops the work halfway."""
    failed = {path.name: fault for path in paths if (fault := _fault(path)) is not None}
    if failed:
        (_, first), *others = failed.items()
        more = f" (cannot be read either: {_some([name for name, _ in others])})" if others else ""
        raise InputError(f"{first}{more}") from first
    return {path: hash_file(path) for path in paths}


def _fault(picture: Path) -> InputError | None:
    try:
        read_picture(picture)
    except InputError as error:
        return error
    return None


def _some(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
