"""A referring phrase as a value: what it names, the place, size and neighbors it states (METHOD §3).

In: the text a person wrote. Out: a frozen `Phrase`; offsets count characters of `Phrase.text`.
"""

from __future__ import annotations

import functools
import html
import importlib
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from refdiff.contracts.options import Reader
from refdiff.errors import InputError, MissingDependencyError
from refdiff.runtime.head import Word, find_head, find_others, words_of
from refdiff.runtime.lexicon import (
    DETERMINERS,
    FRAMES,
    PLACES,
    SIZES,
    SUPERLATIVES,
    VIEWERS,
    Place,
    Size,
    Superlative,
)

SPACY_MODEL = "en_core_web_sm"

_PLAIN = re.compile(r"[ -%'-~\t\n\r]*")
"""A text that cleaning leaves alone but for its white space: printable ASCII without "&"."""

MOST_OTHERS = 3
"""Most other things of a phrase that are used."""


@dataclass(frozen=True)
class Relation:
    """A relation of the named thing to another one."""

    kind: RelationKind
    other: str
    """The other noun phrase as written, e.g. "the blue book"."""


@dataclass(frozen=True)
class Phrase:
    """A parsed phrase."""

    text: str
    """The text as cleaned by `normalize_text`; all offsets and token indices are those of this text."""
    root: str
    """The head word as written; the whole text when none is found."""
    root_end: int
    """End of the prefix text[:root_end] whose last token stands for the root."""
    place: Place | None = None
    """The side of the image named first; "front" means the bottom, "back" the top."""
    superlative: Superlative | None = None
    size: Size | None = None
    """The size stated of the head itself ("the big red mug")."""
    relation: Relation | None = None
    others: tuple[str, ...] = ()
    """The first few other things the phrase names; the relation's comes first."""
    focused: bool = False
    """True if the caller gave the root; then the map is read there whatever the variant's focus."""


def parse_phrase(
    text: str, *, focus: str | None = None, word_boundaries: bool = False, reader: Reader = "rules"
) -> Phrase:
    """Parse a referring phrase.

    Args:
        text: English, e.g. "the small red mug on the left".
        focus: the head word, where the caller knows it better than the rules.
        word_boundaries: True: `root_end` is the end of the head word. False: of the first occurrence of its
            letters, as released ("man" is found inside "woman").
        reader: the built-in rules, or spaCy as in the release.

    Raises:
        InputError: nothing that CLIP can read, or a focus that is not in the phrase.
        MissingDependencyError: spaCy is asked for and not installed.
    """
    text = normalize_text(text)
    head = _find_head(text, focus, reader)
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
        others=_collect_others(text, head, relation),
        focused=focus is not None,
    )


def normalize_text(text: str) -> str:
    """Return `text` as CLIP's own tokenizer cleans it, in its own case, with white space collapsed.

    Broken Unicode is repaired, curly quotes are straightened and HTML entities resolved. Source: openai/CLIP,
    simple_tokenizer.py, `basic_clean` and `whitespace_clean`.

    Raises:
        InputError: it is not text or not valid Unicode, or has nothing that CLIP can read: neither an English
            letter nor, if there are no letters at all, a digit.
    """
    if not isinstance(text, str):
        raise InputError(f"got a phrase of type {type(text).__name__}, expected text; pass an English phrase")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(
            f"got phrase {_printable(text)!r}, which is not valid Unicode; decode it as UTF-8 first"
        )
    clean = _clean(text)
    if not clean:
        raise InputError('got an empty phrase, expected English words; name the thing, e.g. "the red mug"')
    letters = re.findall(r"[^\W\d_]", clean)
    if letters and not re.search("[A-Za-z]", clean):
        raise InputError(
            f"got phrase {_printable(clean)!r}, expected English words; CLIP reads no other language"
        )
    if not re.search("[A-Za-z0-9]", clean):
        raise InputError(
            f"got phrase {_printable(clean)!r}, expected English words or a number; name the thing, "
            'e.g. "the red mug"'
        )
    return clean


def _clean(text: str) -> str:
    if not _PLAIN.fullmatch(text):
        import ftfy  # late: plain text does not need it, and it takes a quarter of a second to import

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def _printable(text: str) -> str:
    """Return the start of a text for a message, without control characters and half surrogates."""
    return "".join(letter for letter in text if letter.isprintable())[:40]


def direction(text: str, *, word_boundaries: bool) -> Literal["left", "right"] | None:
    """Return the side that the position ramp favors; "left" is looked for first (METHOD §5).

    Args:
        text: the phrase.
        word_boundaries: True: the words left, leftmost, right, rightmost in any case. False: lower-case
            substrings, as released, so that "bright mug" is on the right and "Right mug" on no side.
    """
    sides: tuple[Literal["left"], Literal["right"]] = ("left", "right")
    for side in sides:
        found = re.search(rf"(?i)\b{side}(?:most)?\b", text) if word_boundaries else side in text
        if found:
            return side
    return None


def _find_head(text: str, focus: str | None, reader: Reader) -> Word | None:
    if focus is not None:
        return _find_focus(text, focus)
    return spacy_root(text) if reader == "spacy" else find_head(text)


def _collect_others(text: str, head: Word | None, relation: FoundRelation | None) -> tuple[str, ...]:
    """Return what is named after the head, the relation's other thing first and as written."""
    start = head.end if head else 0
    if relation is None:
        return find_others(text[start:])[:MOST_OTHERS] if head else ()
    around = text[start : relation.start], text[max(start, relation.end) :]
    return (relation.other, *(other for part in around for other in find_others(part)))[:MOST_OTHERS]


def _find_focus(text: str, focus: str) -> Word:
    """Find `focus` in the text: as whole words if possible, otherwise inside a word."""
    wanted = re.escape(_clean(focus))
    if not wanted:
        raise InputError(
            f"got a blank focus word, expected a word of {text!r}; leave it out to have one found"
        )
    match = re.search(rf"\b{wanted}\b", text, re.IGNORECASE) or re.search(wanted, text, re.IGNORECASE)
    if match is None:
        raise InputError(
            f"got focus word {_printable(focus)!r}, expected a word of {text!r}; take one of its words"
        )
    return Word(match.group().lower(), *match.span())


def spacy_root(text: str) -> Word | None:
    """Return the release's root: the first token whose dependency contains ROOT or subj.

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


RelationKind = Literal[
    "left of", "right of", "above", "below", "behind", "in front of", "next to", "bigger than", "smaller than"
]


_SIDE = r"(?:(?:to|on|at|towards?) )?(?:the )?(?:far |immediate )?{}(?:[- ]hand)?(?: side)? of"
_RELATIONS: tuple[tuple[RelationKind, str], ...] = (
    ("left of", _SIDE.format("left")),
    ("right of", _SIDE.format("right")),
    ("in front of", r"(?:right |directly |just )?(?:in|at) (?:the )?front of|ahead of"),
    ("behind", r"(?:right |directly |just )?behind|in back of"),
    ("above", r"(?:right |directly |just )?(?:above|on top of|atop|over)|higher than"),
    ("below", r"(?:right |directly |just )?(?:below|under|underneath|beneath)|lower than"),
    (
        "next to",
        r"(?:right |directly |just )?(?:next to|beside|alongside|adjacent to|near|nearest|by)(?: to)?"
        r"|(?:right )?(?:close|closer|closest|nearest) to",
    ),
    ("bigger than", r"(?:bigger|larger|taller|wider) than"),
    ("smaller than", r"(?:smaller|shorter|thinner) than"),
)

_RELATION = re.compile(
    r"\b(?:"
    + "|".join(f"(?P<r{i}>{pattern})" for i, (_, pattern) in enumerate(_RELATIONS))
    + r")\s+(?P<other>[^,;.]+)",
    re.IGNORECASE,
)
_OTHER_ENDS = re.compile(
    r"\s+(?:that|which|who|(?:on|in|at|to) (?:the )?(?:far )?(?:" + "|".join(PLACES) + r")\b(?! of)).*$",
    re.IGNORECASE,
)
_AMONG = re.compile(r"(?:the )?(?:two|three|four|five|[2-5]|them|all|both|pair|group|bunch)\b", re.IGNORECASE)
_BODY_PART = re.compile(r"(?:\b(?:his|her|their|its|the)|'s) back (?:to|turned|of)\b|\btank top\b", re.I)


class FoundRelation(NamedTuple):
    """A relation to another thing, and the part of the text that states it."""

    kind: RelationKind
    other: str
    start: int
    end: int


def find_relation(text: str) -> FoundRelation | None:
    """Return the first "left of the blue book" of a phrase; sides of the image or of a group are places."""
    for match in _RELATION.finditer(text):
        other = _OTHER_ENDS.sub("", match.group("other")).strip()
        names = {word.text for word in words_of(other)}
        if not names - DETERMINERS or _AMONG.match(other) or names & FRAMES or names <= VIEWERS | DETERMINERS:
            continue
        kind = next(kind for i, (kind, _) in enumerate(_RELATIONS) if match.group(f"r{i}"))
        return FoundRelation(kind, other, match.start(), match.start("other") + len(other))
    return None


def find_place(text: str) -> Place | None:
    """Return the side of the image that is named first; `text` is the phrase without its relation."""
    words = [word.text for word in words_of(_BODY_PART.sub(" ", text))]
    places = [PLACES[word] for word in words if word in PLACES]
    if places:
        return places[0]
    if "near" in words and VIEWERS.intersection(words):
        return "bottom"
    return "top" if words[-1:] == ["behind"] else None


def find_superlative(text: str) -> Superlative | None:
    """Return the first superlative of size; `text` is the phrase without its relation."""
    return next((SUPERLATIVES[word.text] for word in words_of(text) if word.text in SUPERLATIVES), None)


def find_size(text: str) -> Size | None:
    """Return the size before the head; `text` ends at the head."""
    return next((SIZES[word.text] for word in words_of(text) if word.text in SIZES), None)
