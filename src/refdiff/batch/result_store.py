"""The output folder of many questions: what is in it is whole, and is not asked again.

    run.json                              what the answers depend on beside picture and phrase
    results.jsonl                         one line per answer of the last finished run, in its order
    <picture's file name>/<phrase>.png    the mask; beside it .overlay.png and .json, the answer's record
    .lock                                 held by the run that writes; the system releases a dead one's

A record says which run, picture (by hash) and phrase it is of, and is put in place after its pictures.
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

from refdiff.batch.prediction import Answer, save
from refdiff.contracts.atomic_io import (
    is_draft,
    lock_file,
    open_draft,
    report_write_errors,
    write_files,
)
from refdiff.errors import InputError

RUN_NAME, RESULTS_NAME, LOCK_NAME = "run.json", "results.jsonl", ".lock"

_SLUG = 40
"""Letters of a phrase that its files' name shows; a hash tells apart what these do not."""


@dataclass(frozen=True, kw_only=True)
class AnswerFolder:
    """A folder that this process alone writes to."""

    path: Path
    run: str
    """Hash of the settings: a record of another run does not count."""

    def record(self, picture: str, picture_sha256: str, phrase: str) -> dict[str, Any] | None:
        """The finished answer's record; None where there is none, or it is of another picture or run.

        Args:
            picture: its file's name.
            picture_sha256: of its file.
            phrase: with white space collapsed.
        """
        mask = self._mask(picture, phrase)
        try:
            document = json.loads(mask.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        about = self._about(picture, picture_sha256, phrase)
        pictures = (mask, mask.with_suffix(".overlay.png"))
        fits = isinstance(document, dict) and all(document.get(key) == about[key] for key in about)
        return document if fits and all(each.is_file() for each in pictures) else None

    def save(self, answer: Answer, picture: str, picture_sha256: str, phrase: str) -> None:
        """Write mask, overlay and record, all or none; an answer of another run or picture is replaced.

        Raises:
            InputError: the folder cannot be written to.
        """
        mask = self._mask(picture, phrase)
        with report_write_errors(mask.parent):
            mask.parent.mkdir(exist_ok=True)
        save(answer, output=mask, overwrite=True, about=self._about(picture, picture_sha256, phrase))

    def finish(self, lines: Iterable[Mapping[str, Any]]) -> Path:
        """Write the results of a whole run.

        Args:
            lines: in order; read one at a time.

        Raises:
            InputError: the folder cannot be written to.
        """
        target = self.path / RESULTS_NAME
        with report_write_errors(target), open_draft(target) as stream:
            stream.writelines(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)
        return target

    def files(self, picture: str, phrase: str) -> dict[str, str]:
        """Kind -> path inside the folder."""
        mask = self._mask(picture, phrase).relative_to(self.path)
        paths = {"mask": mask, "overlay": mask.with_suffix(".overlay.png"), "json": mask.with_suffix(".json")}
        return {kind: path.as_posix() for kind, path in paths.items()}

    def _mask(self, picture: str, phrase: str) -> Path:
        slug = re.sub("[^a-z0-9]+", "-", phrase.lower()).strip("-")[:_SLUG].strip("-")
        return self.path / picture / f"{slug}-{hashlib.sha256(phrase.encode()).hexdigest()[:8]}.png"

    def _about(self, picture: str, picture_sha256: str, phrase: str) -> dict[str, str]:
        return {"picture": picture, "picture_sha256": picture_sha256, "phrase": phrase, "run": self.run}


@contextmanager
def open_answer_folder(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[AnswerFolder]:
    """Make or reopen a folder, for this process alone while the block runs.

    Args:
        path: the folder.
        settings: JSON-ready; everything that answers depend on beside picture and phrase.
        overwrite: take a folder of other settings; its answers are replaced as they are asked again.

    Raises:
        InputError: another process writes there, or the folder is of other settings, of something else, or
            cannot be written to.
    """
    check_answer_folder(path)
    wanted = json.loads(json.dumps(settings))
    with ExitStack() as stack:
        with report_write_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(path / LOCK_NAME, on_busy=lambda: _refuse_second_run(path)))
        found = _settings(path)
        if found is not None and found != wanted and not overwrite:
            raise InputError(
                f"{path} was answered with {_difference(found, wanted)}; ask for the same, choose another"
                " folder, or have those answers replaced (--overwrite)"
            )
        _clean(path)
        if found != wanted:
            write_files({path / RUN_NAME: (json.dumps(wanted, indent=1) + "\n").encode()}, overwrite=True)
        run = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        yield AnswerFolder(path=path, run=run)


def check_answer_folder(path: Path) -> None:
    """Refuse a place that is neither free nor a folder of answers.

    Raises:
        InputError: says what is in the way.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file, expected a folder for many answers; choose another place")
    with report_write_errors(path):
        names = {each.name for each in path.iterdir()} - {LOCK_NAME}
    if RUN_NAME not in names and (strangers := sorted(name for name in names if not is_draft(name))):
        raise InputError(
            f"{path} is no folder of answers: it holds {strangers[0]!r} and no {RUN_NAME}; "
            "it is left alone, choose another place"
        )


def _refuse_second_run(path: Path) -> None:
    raise InputError(f"another run is writing into {path}; wait until it has ended, or choose another folder")


def _settings(path: Path) -> Any:
    """What the folder was answered with; None where nothing was."""
    try:
        text = (path / RUN_NAME).read_text(encoding="utf-8")
        return json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path / RUN_NAME} cannot be read ({error}); choose another folder, or remove this one"
        ) from error


def _difference(found: Any, wanted: Mapping[str, Any]) -> str:
    """The first setting that differs."""
    known = found if isinstance(found, Mapping) else {}
    for key in wanted:
        theirs, ours = known.get(key), wanted[key]
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping) and theirs != ours:
            return _difference(theirs, ours)
        if theirs != ours:
            return f"{key} {theirs!r}, asked for is {ours!r}"
    return "other settings"


def _clean(path: Path) -> None:
    """Remove what writers that were killed left behind; nobody else writes here now."""
    for left in (*path.glob(".*"), *path.glob("*/.*")):
        if is_draft(left.name):
            left.unlink(missing_ok=True)
