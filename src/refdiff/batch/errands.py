"""What many questions ask: which phrases of which picture.

In: a picture or a folder, phrases or a file of them. Out: an errand for each picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refdiff.batch.result_store import check_answer_folder
from refdiff.data.samples import phrase_rows, pictures_of
from refdiff.errors import InputError
from refdiff.runtime.phrase import checked_text


@dataclass(frozen=True, kw_only=True)
class Errand:
    """A picture, and what is asked of it."""

    picture: Path
    phrases: tuple[str, ...]
    """White space collapsed, no two the same."""


def errands_of(picture: Path, phrases: Sequence[str] | Path, output: Path | None) -> list[Errand]:
    """Everything that is asked; nothing has been read but the file of phrases.

    Args:
        picture: a picture file, or a folder of pictures.
        phrases: asked of each picture; or the path of a CSV file that says which is asked of which.
        output: a folder for the answers; None where they are handed back.

    Raises:
        InputError: no picture or phrase, one that cannot be asked, or an output that cannot be taken.
    """
    if output is not None:
        if output.suffix.lower() == ".png":
            raise InputError(f"got output {output}, expected a folder for many answers; name one")
        check_answer_folder(output)
    if isinstance(phrases, Path):
        return _errands_of_file(picture, phrases, output)
    if isinstance(phrases, str):
        raise InputError(f"got one text, {phrases!r}, expected a sequence of phrases; put it into a list")
    asked = tuple(dict.fromkeys(checked_text(phrase) for phrase in phrases))
    if not asked:
        raise InputError(
            'got no phrase, expected one or more, e.g. "the red mug"; or a file of them (--phrases)'
        )
    if not picture.is_dir():
        return [Errand(picture=picture, phrases=asked)]
    _check_output(output)
    return [Errand(picture=picture / name, phrases=asked) for name in pictures_of(picture)]


def _errands_of_file(picture: Path, phrases: Path, output: Path | None) -> list[Errand]:
    rows = phrase_rows(phrases)
    pictures_of(picture, phrases, [image for _, image, _ in rows])
    _check_output(output)
    asked: dict[str, dict[str, None]] = {}
    for line, image, phrase in rows:
        asked.setdefault(image, {})[_checked_line(phrase, f"{phrases}, line {line}")] = None
    return [Errand(picture=picture / image, phrases=tuple(some)) for image, some in asked.items()]


def _checked_line(phrase: str, where: str) -> str:
    try:
        return checked_text(phrase)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _check_output(output: Path | None) -> None:
    if output is None:
        raise InputError("got a folder of pictures and no output folder; name one (--output)")
