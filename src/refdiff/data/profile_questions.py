"""What `profile` asks: the miniature's sample scenes, or one picture and one phrase of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.contracts.bundle import Bundle
from refdiff.data.synthetic import DEMO_SEEDS, questions
from refdiff.errors import InputError
from refdiff.runtime.image import png, read_picture
from refdiff.runtime.phrase import read_phrase
from refdiff.runtime.tokenizer import Tokenizer

BUILT_IN_MODEL = "mini"
MOST_SCENES = len(DEMO_SEEDS)


@dataclass(frozen=True, kw_only=True)
class ProfiledQuestion:
    """A picture as it comes, in a file's bytes: decoding it is part of the work."""

    name: str
    picture: bytes
    size_yx: tuple[int, int]
    phrase: str

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; the same question gives the same."""
        return {
            "name": self.name,
            "sha256": hashlib.sha256(self.picture).hexdigest(),
            "size": {"width": self.size_yx[1], "height": self.size_yx[0]},
            "phrase": self.phrase,
        }


def profiled_questions(
    bundle: Bundle, *, image: Path | str | None, phrase: str | None, scenes: int | None
) -> Sequence[ProfiledQuestion]:
    """The questions of one round.

    Args:
        bundle: whose they are.
        image: a picture file; None: the miniature's scenes.
        phrase: what is asked of it.
        scenes: how many scenes; None: three, a tall, a wide and a square one.

    Raises:
        InputError: an image without phrase or the other way round, a picture or a phrase that cannot be read,
            or no picture for a bundle that the scenes are not for.
    """
    if image is not None and phrase is not None and scenes is None:
        return [_own(bundle, Path(image), phrase)]
    if image is not None or phrase is not None:
        lone = "--scenes too" if scenes is not None else "no --phrase" if phrase is None else "no --image"
        raise InputError(
            f"a picture of one's own is --image and --phrase alone, got {lone}; give both of them"
        )
    if bundle.spec.name.split("-")[0] != BUILT_IN_MODEL:
        raise InputError(
            f"the built-in scenes are for the miniature, {bundle.path} is of {bundle.spec.name}; "
            "name a picture and what to ask: --image photo.jpg --phrase 'the red mug'"
        )
    count = 3 if scenes is None else scenes
    if not 1 <= count <= MOST_SCENES:
        raise InputError(f"got {count} scenes, expected 1 to {MOST_SCENES}")
    return [
        ProfiledQuestion(
            name=f"scene {asked.seed}",
            picture=png(asked.image),
            size_yx=asked.image.shape[:2],
            phrase=asked.phrase,
        )
        for asked in questions(DEMO_SEEDS[:count])
    ]


def _own(bundle: Bundle, image: Path, phrase: str) -> ProfiledQuestion:
    tokenizer = Tokenizer(bundle.tokenizer_json(), bundle.spec.context_length)
    tokenizer.check_length(read_phrase(phrase, word_boundaries=True).text)
    try:
        content = image.read_bytes()
    except OSError as error:
        raise InputError(f"{image} cannot be read ({error.strerror}); expected a picture file") from error
    height, width = read_picture(content, name=str(image)).shape[:2]
    return ProfiledQuestion(name=image.name, picture=content, size_yx=(height, width), phrase=phrase)
