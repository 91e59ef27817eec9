"""Rules that find place, size and relation in a referring phrase.

In: text. Out: spans, and names from `lexicon`. Offsets count characters of the given text.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from refdiff.runtime.head import words_of
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
