"""A referring phrase as a value: what it names, and what it says of place, size and neighbours (METHOD §3).

In: the text a person wrote. Out: a frozen `Phrase`; offsets count characters of `Phrase.text`.
"""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass
from typing import Any, Literal

from refdiff.contracts.options import Reader
from refdiff.errors import InputError, MissingDependencyError
from refdiff.runtime.lexicon import Place, Size, Superlative
from refdiff.runtime.phrase_rules import (
    FoundRelation,
    RelationKind,
    Word,
    find_head,
    find_others,
    find_place,
    find_relation,
    find_size,
    find_superlative,
)

SPACY_MODEL = "en_core_web_sm"

MOST_OTHERS = 3
"""Other things of a phrase that are looked at."""


@dataclass(frozen=True)
class Relation:
    """How the named thing lies to another one."""

    kind: RelationKind
    other: str
    """The other noun phrase as written, e.g. "the blue book"."""


@dataclass(frozen=True)
class Phrase:
    """A phrase, read."""

    text: str
    """As written, with white space collapsed."""
    root: str
    """The head word as written; the whole text when none is found."""
    root_end: int
    """text[:root_end] is the prefix whose last token stands for the root."""
    place: Place | None = None
    """The side of the picture named first; front reads as bottom, back as top."""
    superlative: Superlative | None = None
    size: Size | None = None
    """Size said of the head itself ("the big red mug")."""
    relation: Relation | None = None
    others: tuple[str, ...] = ()
    """The first few other things the phrase speaks of; the relation's comes first."""
    focused: bool = False
    """The caller said the root outright, so the map is read there whatever the variant's focus."""


def parse_phrase(
    text: str, *, focus: str | None = None, word_boundaries: bool = False, reader: Reader = "rules"
) -> Phrase:
    """Read a referring phrase.

    Args:
        text: English, e.g. "the small red mug on the left".
        focus: the head word, for a caller who knows better than the reader.
        word_boundaries: True: `root_end` is where the head really stands. False: the first occurrence of its
            letters, as released ("man" is found inside "woman").
        reader: the built-in rules, or spaCy as in the release.

    Raises:
        InputError: blank, no English letters, or a focus that is not in the phrase.
        MissingDependencyError: spaCy is asked for and not installed.
    """
    text = checked_text(text)
    head = _head(text, focus, reader)
    root, end = (text[head.start : head.end], head.end) if head else (text, len(text))
    if not word_boundaries:
        end = text.find(root) + len(root)
    relation = find_relation(text)
    own = text if relation is None else f"{text[: relation.start]} , {text[relation.end :]}"
    return Phrase(
        text=text,
        root=root,
        root_end=end,
        place=find_place(own),
        superlative=find_superlative(own),
        size=find_size(text[: head.end]) if head else None,
        relation=None if relation is None else Relation(relation.kind, relation.other),
        others=_others(text, head, relation),
        focused=focus is not None,
    )


def checked_text(text: str) -> str:
    """`text` with white space collapsed.

    Raises:
        InputError: it is not text, blank, not encodable, or has no letter that CLIP's English can read.
    """
    if not isinstance(text, str):
        raise InputError(f"got a phrase of type {type(text).__name__}, expected text; pass an English phrase")
    clean = " ".join(text.split())
    if not clean:
        raise InputError('got an empty phrase, expected English words; name the thing, e.g. "the red mug"')
    if not re.search("[A-Za-z]", clean):
        raise InputError(f"got phrase {clean[:40]!a}, expected English words; CLIP reads no other language")
    if any("\ud800" <= letter <= "\udfff" for letter in clean):
        raise InputError(f"got phrase {clean[:40]!a}, which is not valid Unicode; decode it as UTF-8 first")
    return clean


def direction(text: str, *, word_boundaries: bool) -> Literal["left", "right"] | None:
    """The side the position ramp favours: "left" is looked for first (METHOD §5).

    Args:
        text: the phrase.
        word_boundaries: True: the words left, leftmost, right, rightmost. False: substrings, as released, so
            that "bright mug" is on the right.
    """
    lower = text.lower()
    sides: tuple[Literal["left"], Literal["right"]] = ("left", "right")
    for side in sides:
        found = re.search(rf"\b{side}(?:most)?\b", lower) if word_boundaries else side in lower
        if found:
            return side
    return None


def _head(text: str, focus: str | None, reader: Reader) -> Word | None:
    if focus is not None:
        return _focus_word(text, focus)
    return spacy_root(text) if reader == "spacy" else find_head(text)


def _others(text: str, head: Word | None, relation: FoundRelation | None) -> tuple[str, ...]:
    """What is named behind the head, the relation's other thing first and as it stands there."""
    start = head.end if head else 0
    if relation is None:
        return find_others(text[start:])[:MOST_OTHERS] if head else ()
    around = text[start : relation.start], text[max(start, relation.end) :]
    return (relation.other, *(other for part in around for other in find_others(part)))[:MOST_OTHERS]


def _focus_word(text: str, focus: str) -> Word:
    """Where `focus` stands: as words if it can, inside a word otherwise."""
    wanted = re.escape(" ".join(focus.split()))
    if not wanted:
        raise InputError(
            f"got a blank focus word, expected a word of {text!r}; leave it out to have one found"
        )
    match = re.search(rf"\b{wanted}\b", text, re.IGNORECASE) or re.search(wanted, text, re.IGNORECASE)
    if match is None:
        raise InputError(f"got focus word {focus!r}, expected a word of {text!r}; take one of its words")
    return Word(match.group().lower(), *match.span())


def spacy_root(text: str) -> Word | None:
    """The release's root: the first token whose dependency contains ROOT or subj.

    Raises:
        MissingDependencyError: spaCy or its English model is not installed.
    """
    for token in _spacy_pipeline()(text):
        if "ROOT" in token.dep_ or "subj" in token.dep_:
            return Word(token.text.lower(), token.idx, token.idx + len(token.text))
    return None


@functools.lru_cache(maxsize=1)
def _spacy_pipeline() -> Any:
    try:
        spacy = importlib.import_module("spacy")
    except ModuleNotFoundError as error:
        if error.name != "spacy":
            raise
        raise MissingDependencyError(
            "reading phrases with spaCy needs the package spacy; install it with: pip install spacy"
        ) from error
    try:
        return spacy.load(SPACY_MODEL)
    except OSError as error:
        raise MissingDependencyError(
            f"spaCy's model {SPACY_MODEL} is missing; install it with: python -m spacy download {SPACY_MODEL}"
        ) from error
