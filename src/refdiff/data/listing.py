"""List the images of a folder, and name what is passed over and why.

A file is an image if its suffix or its first bytes say so. Files that only claim to be images are listed
too, so that reading them reports them by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from refdiff.contracts.plain_file import open_plain
from refdiff.errors import InputError

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
