"""The output folder of a batch run: every result in it is complete, and is reused by later runs.

    run.json           the settings that results depend on, apart from image and phrase
    masks/NAME.png     the masks, 255 inside and 0 outside
    overlays/NAME.png  the masks on their images
    thumbnails/NAME.jpg
    records/NAME.json  the records, each with the hashes of its mask, overlay and thumbnail
    results.jsonl      one line per image and phrase of the last finished run, in its order
    index.html         a page of these results
    coco.json          the same as a COCO file, if it was asked for
    coco/, yolo-seg/, label-studio/  data sets to train on, those that were asked for
    .lock              held by the run that writes; the system releases it if that run dies

NAME is made of the image's name, the phrase and a hash of both: it is valid on every system, and no file or
folder is named like the image. A record names its run and its image (by hash). It is removed before any of
its files is replaced, and written after them, so that it never describes other files. What describes the
whole run is removed before a result of that run is replaced.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refdiff.batch.prediction import Prediction
from refdiff.contracts.atomic_io import (
    draft_path,
    hash_file,
    is_draft,
    open_draft,
    report_write_errors,
    write_file,
    write_files,
)
from refdiff.contracts.file_lock import lock_file
from refdiff.contracts.plain_file import read_plain
from refdiff.errors import InputError
from refdiff.runtime.image import png

RUN_NAME, RESULTS_NAME, LOCK_NAME = "run.json", "results.jsonl", ".lock"
INDEX_NAME, COCO_NAME = "index.html", "coco.json"
EXPORTS = ("coco", "yolo-seg", "label-studio")
"""Kinds of data sets to train on, and their folders."""

FOLDERS = {"mask": "masks", "overlay": "overlays", "thumbnail": "thumbnails", "record": "records"}
_SUFFIXES = {"mask": ".png", "overlay": ".png", "thumbnail": ".jpg", "record": ".json"}

_SLUG_LENGTH = 40
"""Letters of an image's name, and of a phrase, in file names; a hash distinguishes those that share them."""

_THUMBNAIL_PX = 480
"""Longer side of a thumbnail."""


@dataclass(frozen=True, kw_only=True)
class ResultStore:
    """An output folder that only this process writes to."""

    path: Path
    run: str
    """Hash of the settings: a record of other settings is ignored."""
    write: Callable[[Path, bytes], None] = write_file
    """Writes one file whole or not at all."""

    def record(
        self, image: str, image_sha256: str, phrase: str, *, verify: bool = True
    ) -> dict[str, Any] | None:
        """Return a result's record, or None if there is none for this image, phrase and run.

        Args:
            image: the image's name.
            image_sha256: hash of the image file.
            phrase: with white space collapsed.
            verify: return None as well if a file of the result is missing or is not the one that was written.
        """
        files = self._files(image, phrase)
        try:
            document = json.loads(read_plain(files["record"]))
            about = self._about(image, image_sha256, phrase)
            if not isinstance(document, dict) or any(document.get(key) != about[key] for key in about):
                return None
            hashes = document["sha256"]
            if verify and any(hash_file(files[kind]) != hashes[kind] for kind in FOLDERS if kind != "record"):
                return None
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return document

    def encode(self, prediction: Prediction, image: str, image_sha256: str, phrase: str) -> dict[str, bytes]:
        """Draw and encode a prediction: kind -> content of the file, the record last.

        Args:
            prediction: of the phrase on the image.
            image: the image's name.
            image_sha256: hash of the image file.
            phrase: with white space collapsed.
        """
        painted = prediction.result.overlay()
        small, thumbnail = Image.fromarray(painted), io.BytesIO()
        small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        small.save(thumbnail, format="JPEG", quality=85)
        contents = {
            "mask": png(np.where(prediction.result.mask, np.uint8(255), np.uint8(0))),
            "overlay": png(painted),
            "thumbnail": thumbnail.getvalue(),
        }
        files = self._files(image, phrase)
        record = {
            **prediction.to_json(),
            **self._about(image, image_sha256, phrase),
            "files": {kind: path.relative_to(self.path).as_posix() for kind, path in files.items()},
            "sha256": {kind: hashlib.sha256(data).hexdigest() for kind, data in contents.items()},
        }
        return {**contents, "record": (json.dumps(record, allow_nan=False, indent=1) + "\n").encode()}

    def save(self, contents: Mapping[str, bytes], image: str, phrase: str) -> None:
        """Write the files of a result; one of another run or image is replaced.

        Args:
            contents: from `encode`; written in this order.
            image: the image's name.
            phrase: with white space collapsed.

        Raises:
            InputError: the folder cannot be written to.
        """
        files = self._files(image, phrase)
        with report_write_errors(self.path):
            if files["record"].exists():
                self.remove_summaries()
                files["record"].unlink()
            for kind, data in contents.items():
                files[kind].parent.mkdir(exist_ok=True)
                self.write(files[kind], data)

    def remove_summaries(self) -> None:
        """Remove what describes a whole run: results.jsonl, the page, the COCO file and the data sets.

        Raises:
            OSError: the disk refuses.
        """
        for name in (INDEX_NAME, COCO_NAME, RESULTS_NAME):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.path / name for name in EXPORTS):
            if folder.is_dir():
                aside = draft_path(folder)
                folder.rename(aside)  # a killed run leaves no part of a data set under its name
                shutil.rmtree(aside)

    def finish(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write `results.jsonl` at the end of a run.

        Args:
            lines: in order; taken one at a time.

        Raises:
            InputError: the folder cannot be written to.
        """
        target = self.path / RESULTS_NAME
        with report_write_errors(target):
            self.remove_summaries()
            with open_draft(target) as stream:
                for line in lines:
                    stream.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of `results.jsonl`."""
        with (self.path / RESULTS_NAME).open(encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)

    def _files(self, image: str, phrase: str) -> dict[str, Path]:
        """Return the paths of a result's files: kind -> path."""
        key = hashlib.sha256(os.fsencode(image) + b"\0" + phrase.encode()).hexdigest()[:10]
        stem = _slug(re.sub(r"\.[^./]*$", "", image)[-_SLUG_LENGTH:]) or "image"
        name = f"{stem}--{_slug(phrase[:_SLUG_LENGTH])}-{key}"
        return {kind: self.path / FOLDERS[kind] / f"{name}{_SUFFIXES[kind]}" for kind in FOLDERS}

    def _about(self, image: str, image_sha256: str, phrase: str) -> dict[str, str]:
        return {"image": image, "image_sha256": image_sha256, "phrase": phrase, "run": self.run}


def _slug(text: str) -> str:
    """Return the ASCII letters and digits of a text, the rest as single hyphens."""
    return re.sub("[^A-Za-z0-9]+", "-", text).strip("-")


@contextmanager
def open_result_store(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[ResultStore]:
    """Create or reopen an output folder, and lock it for this process while the block runs.

    Args:
        path: the folder.
        settings: JSON-ready; everything that results depend on apart from image and phrase.
        overwrite: accept a folder of other settings; its results are replaced one by one.

    Raises:
        InputError: another process writes there, the folder was written with other settings or is no output
            folder, or it cannot be written.
    """
    check_result_folder(path)
    wanted = json.loads(json.dumps(settings))
    with ExitStack() as stack:
        with report_write_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(path / LOCK_NAME, on_busy=lambda: _refuse_second_run(path)))
        found = _read_settings(path)
        if found is not None and found != wanted and not overwrite:
            raise InputError(
                f"{path} was written with {_first_difference(found, wanted)}; use the same settings or "
                "another folder, or replace its results (--overwrite)"
            )
        _remove_drafts(path)
        run = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        store = ResultStore(path=path, run=run)
        if found != wanted:
            with report_write_errors(path):
                store.remove_summaries()
            write_files({path / RUN_NAME: (json.dumps(wanted, indent=1) + "\n").encode()}, overwrite=True)
        yield store


def check_result_folder(path: Path) -> None:
    """Refuse a path that is neither free, nor an empty folder, nor an output folder.

    Raises:
        InputError: names what is in the way.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file, expected a folder for many results; choose another place")
    with report_write_errors(path):
        names = {each.name for each in path.iterdir()} - {LOCK_NAME}
    others = sorted(name for name in names if not is_draft(name))
    if RUN_NAME not in names and others:
        raise InputError(
            f"{path} is not an output folder: it contains {others[0]!r} and no {RUN_NAME}; "
            "it was not modified, choose another place"
        )


def _refuse_second_run(path: Path) -> None:
    raise InputError(f"another run is writing to {path}; wait until it has ended, or choose another folder")


def _read_settings(path: Path) -> Any:
    """Return the settings that the folder was written with, or None in a new folder."""
    try:
        return json.loads(read_plain(path / RUN_NAME))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path / RUN_NAME} cannot be read ({error}); choose another folder, or remove this one"
        ) from error


def _first_difference(found: Any, wanted: Mapping[str, Any]) -> str:
    """Describe the first setting that differs."""
    known = found if isinstance(found, Mapping) else {}
    for key in wanted:
        theirs, ours = known.get(key), wanted[key]
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping) and theirs != ours:
            return _first_difference(theirs, ours)
        if theirs != ours:
            return f"{key} {theirs!r}, this run has {ours!r}"
    return "other settings"


def _remove_drafts(path: Path) -> None:
    """Remove the partial files of runs that were killed; the lock is held."""
    for folder in (path, *(path / name for name in FOLDERS.values())):
        for draft in folder.glob(".*"):
            if is_draft(draft.name) and draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            elif is_draft(draft.name):
                draft.unlink(missing_ok=True)
