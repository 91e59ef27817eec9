"""The output folder of a batch run: every result in it is complete, and is reused by later runs.

    run.json                            the settings that results depend on, apart from image and phrase
    results.jsonl                       one line per result of the last finished run, in its order
    <image's file name>/<phrase>.png    the mask; next to it .overlay.png, and .json: the record
    .lock                               held by the run that writes; the system releases it if that run dies

A record names its run, image (by hash) and phrase, and is put in place after its mask and overlay.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.batch.prediction import Prediction
from refdiff.batch.prediction_files import save
from refdiff.contracts.atomic_io import (
    is_draft,
    lock_file,
    open_draft,
    report_write_errors,
    write_files,
)
from refdiff.errors import InputError

RUN_NAME, RESULTS_NAME, LOCK_NAME = "run.json", "results.jsonl", ".lock"

_SLUG_LENGTH = 40
"""Letters of a phrase in its file names; a hash distinguishes phrases that share them."""


@dataclass(frozen=True, kw_only=True)
class ResultStore:
    """An output folder that only this process writes to."""

    path: Path
    run: str
    """Hash of the settings: a record of other settings is ignored."""

    def record(self, image: str, image_sha256: str, phrase: str) -> dict[str, Any] | None:
        """Return a result's record, or None if there is none for this image, phrase and run.

        Args:
            image: the image file's name.
            image_sha256: hash of the image file.
            phrase: with white space collapsed.
        """
        mask = self._mask(image, phrase)
        try:
            document = json.loads(mask.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        about = self._about(image, image_sha256, phrase)
        files = (mask, mask.with_suffix(".overlay.png"))
        fits = isinstance(document, dict) and all(document.get(key) == about[key] for key in about)
        return document if fits and all(each.is_file() for each in files) else None

    def save(self, prediction: Prediction, image: str, image_sha256: str, phrase: str) -> None:
        """Write mask, overlay and record, all or none; a result of another run or image is replaced.

        Raises:
            InputError: the folder cannot be written to.
        """
        mask = self._mask(image, phrase)
        with report_write_errors(mask.parent):
            mask.parent.mkdir(exist_ok=True)
        save(prediction, output=mask, overwrite=True, about=self._about(image, image_sha256, phrase))

    def finish(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Write `results.jsonl` at the end of a run.

        Args:
            lines: in order; taken one at a time.

        Returns:
            Lines with a mask.

        Raises:
            InputError: the folder cannot be written to.
        """
        target = self.path / RESULTS_NAME
        matched = 0
        with report_write_errors(target), open_draft(target) as stream:
            for line in lines:
                matched += bool(line.get("matched"))
                stream.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        return matched

    def files(self, image: str, phrase: str) -> dict[str, str]:
        """Return the paths of a result's files, relative to the folder: kind -> path."""
        mask = self._mask(image, phrase).relative_to(self.path)
        paths = {"mask": mask, "overlay": mask.with_suffix(".overlay.png"), "json": mask.with_suffix(".json")}
        return {kind: path.as_posix() for kind, path in paths.items()}

    def _mask(self, image: str, phrase: str) -> Path:
        slug = re.sub("[^a-z0-9]+", "-", phrase.lower()).strip("-")[:_SLUG_LENGTH].strip("-")
        return self.path / image / f"{slug}-{hashlib.sha256(phrase.encode()).hexdigest()[:8]}.png"

    def _about(self, image: str, image_sha256: str, phrase: str) -> dict[str, str]:
        return {"picture": image, "picture_sha256": image_sha256, "phrase": phrase, "run": self.run}


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
        if found != wanted:
            write_files({path / RUN_NAME: (json.dumps(wanted, indent=1) + "\n").encode()}, overwrite=True)
        run = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        yield ResultStore(path=path, run=run)


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
        text = (path / RUN_NAME).read_text(encoding="utf-8")
        return json.loads(text)
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
    for draft in (*path.glob(".*"), *path.glob("*/.*")):
        if is_draft(draft.name):
            draft.unlink(missing_ok=True)
