"""Samples of image files, from the rows of a CSV file or a folder of images, and the listing of that folder.

The CSV file is UTF-8 with the header `image,phrase`: a file's name inside the image folder, and a phrase.
Only names and the CSV file are read here; an image is read when its sample is. A file is an image if its
suffix or its first bytes say so. Files that only claim to be images are listed too, so that reading them
reports them by name.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from refdiff.contracts.plain_file import open_plain, read_plain
from refdiff.data.sample import Sample, SampleList
from refdiff.errors import InputError
from refdiff.runtime.image import read_image
from refdiff.runtime.phrase import normalize_text

IMAGE_SUFFIXES = frozenset(
    {
        *(
            ".avif",
            ".bmp",
            ".dib",
            ".gif",
            ".heic",
            ".heif",
            ".hif",
            ".j2k",
            ".jfif",
            ".jp2",
            ".jpe",
            ".jpeg",
        ),
        *(".jpg", ".jxl", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".tga", ".tif", ".tiff"),
        *(".webp", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
    }
)
"""Suffixes of images, also of those that cannot be decoded here: these are reported, not passed over."""

HIDDEN = "hidden"
NOT_SEARCHED = "a sub-folder; include it with --recursive"
LINKED_FOLDER = "a link to a folder; links are not searched"
RESULTS = "a folder of results"
UNREADABLE = "cannot be read; check its permissions"
BROKEN_LINK = "a link to nothing"
NO_FILE = "not a regular file"
NO_IMAGE = "not an image"

_IMAGE, _FOLDER = "image", "folder"

_HEAD_BYTES = 32

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|P[1-6]\s+(#|\d+\s)"
    rb"|BM....\0\0\0\0..\0\0[\x0c-\x7c]\0\0\0|\0\0\0\x0cjP  |\xff\x4f\xff\x51|8BPS\0[\x01\x02]"
    rb"|....ftyp(avi[fs]|hei[cmsx]|hev[cmsx]|mif1|msf1)",
    re.DOTALL,
)
"""First bytes of JPEG, PNG, GIF, TIFF, WebP, netpbm, BMP, JPEG 2000, Photoshop, AVIF and HEIF."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The content of an image folder; names are relative to it, with "/" between folders."""

    images: tuple[str, ...]
    """Sorted."""
    skipped: Mapping[str, tuple[str, ...]]
    """Reason -> names of what is no image, or was not searched; names of folders end in "/"."""


def list_images(folder: Path, *, recursive: bool = False, exclude: Path | None = None) -> Listing:
    """List the images of a folder.

    Args:
        folder: links to files in it are followed, links to folders are not.
        recursive: search its sub-folders too.
        exclude: a folder that is not searched or mentioned, such as the output folder.

    Raises:
        InputError: the folder is missing or cannot be read.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}, expected a folder of images; check the path")
    ignored = None if exclude is None else exclude.resolve()
    found: dict[str, list[str]] = {_IMAGE: []}
    pending = [""]
    while pending:
        parent = pending.pop()
        for name, kind in _scan(folder, parent):
            if kind != _FOLDER:
                found.setdefault(kind, []).append(name)
            elif (folder / name).resolve() == ignored:
                continue
            elif recursive:
                pending.append(f"{name}/")
            else:
                found.setdefault(NOT_SEARCHED, []).append(f"{name}/")
    images = tuple(sorted(found.pop(_IMAGE)))
    return Listing(images=images, skipped={kind: tuple(sorted(names)) for kind, names in found.items()})


def _scan(folder: Path, parent: str) -> list[tuple[str, str]]:
    """Return name and kind of each entry of a folder; `parent` is relative, empty or with "/" at its end."""
    try:
        with os.scandir(folder / parent) as entries:
            return [(parent + entry.name, _classify(entry)) for entry in entries]
    except OSError as error:
        if parent:
            return [(parent, UNREADABLE)]
        raise InputError(f"{folder} cannot be read ({error.strerror}); check its permissions") from error


def describe_skipped(skipped: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return a line for each reason: the count, and a few of the names."""
    return [
        f"skipped, {reason}: {shorten(names)} ({len(names)})" for reason, names in sorted(skipped.items())
    ]


def shorten(names: tuple[str, ...] | list[str], shown: int = 3) -> str:
    """List a few names, and how many more there are."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _classify(entry: os.DirEntry[str]) -> str:
    """Return `_IMAGE`, `_FOLDER`, or the reason to skip the entry."""
    if entry.name.startswith("."):
        return HIDDEN
    named_as_image = PurePosixPath(entry.name).suffix.lower() in IMAGE_SUFFIXES
    try:
        if entry.is_dir():
            return _classify_folder(entry)
        if entry.is_file():
            return _IMAGE if named_as_image or _begins_as_image(Path(entry.path)) else NO_IMAGE
        broken = entry.is_symlink() and not Path(entry.path).exists()
    except OSError:
        return _IMAGE if named_as_image else UNREADABLE
    if broken:
        return _IMAGE if named_as_image else BROKEN_LINK
    return NO_FILE


def _classify_folder(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return LINKED_FOLDER
    names = Path(entry.path)
    return RESULTS if (names / "run.json").is_file() and (names / "records").is_dir() else _FOLDER


def _begins_as_image(path: Path) -> bool:
    with open_plain(path) as stream:
        return _MAGIC.match(stream.read(_HEAD_BYTES)) is not None


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
