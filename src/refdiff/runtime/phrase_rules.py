"""Rules that find the head noun, place, size and relation in a referring phrase.

No model is needed: referring phrases are short, and the head is in their first noun chunk. In: text. Out:
spans, and names from `lexicon`. Offsets count characters of the given text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from refdiff.runtime.lexicon import (
    COLORS,
    COMPOUNDS,
    DETERMINERS,
    ED_NOUNS,
    EST_NOUNS,
    FRAMES,
    ING_NOUNS,
    MODIFIERS,
    PLACES,
    SIZES,
    STOPS,
    SUPERLATIVES,
    UNSEEN,
    VIEWERS,
    Place,
    Size,
    Superlative,
)

RelationKind = Literal[
    "left of", "right of", "above", "below", "behind", "in front of", "next to", "bigger than", "smaller than"
]


class Word(NamedTuple):
    """One word, lower case with straight apostrophes, and its offsets."""

    text: str
    start: int
    end: int


_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_CLAUSE = re.compile(r"[^,;:.!?()]+")
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


def words_of(text: str) -> tuple[Word, ...]:
    """Split `text` into words, in reading order."""
    return tuple(Word(m.group().lower().replace("\u2019", "'"), *m.span()) for m in _WORD.finditer(text))


def find_head(text: str) -> Word | None:
    """Return the word that names the thing: the last noun of the first noun chunk.

    Where no chunk has a noun, it is the adjective or place that stands for one ("red, on the left",
    "far right").

    Returns:
        None for a phrase that names nothing ("who is holding the ball").
    """
    clauses = [_shift(words_of(m.group()), m.start()) for m in _CLAUSE.finditer(text)]
    chunks = [_chunk(clause) for clause in clauses]
    nouns = [head for head in map(_noun, chunks) if head is not None]
    if nouns:
        return nouns[0]
    loose = next((chunk for chunk in chunks if chunk), ())
    described = [word for word in loose if word.text not in PLACES and word.text != "far"]
    return described[-1] if described else next(reversed(loose), None)


def _shift(words: Sequence[Word], by: int) -> tuple[Word, ...]:
    return tuple(Word(word.text, word.start + by, word.end + by) for word in words)


def _chunk(words: Sequence[Word]) -> tuple[Word, ...]:
    """Return the words before the first preposition, relative or verb, without determiners."""
    length = next((i for i, word in enumerate(words) if word.text in STOPS), len(words))
    return tuple(word for word in words[:length] if word.text not in DETERMINERS)


def _noun(chunk: Sequence[Word]) -> Word | None:
    """Return the last word of the first run of nouns."""
    head = None
    for i, word in enumerate(chunk):
        follower = chunk[i + 1].text if i + 1 < len(chunk) else ""
        before = chunk[i - 1].text if i else ""
        opens, closes = f"{word.text}-{follower}" in COMPOUNDS, f"{before}-{word.text}" in COMPOUNDS
        if opens or closes or not _is_modifier(word.text, follower):
            head = word
        elif head is not None:
            break
    return head


def _is_modifier(word: str, follower: str) -> bool:
    """Return whether `word` describes: listed, number, possessive, participle, superlative."""
    return (
        word in MODIFIERS
        or word[0].isdigit()
        or word.endswith(("'s", "s'"))
        or (word == "light" and follower in COLORS)
        or (word.endswith("ing") and word not in ING_NOUNS)
        or (word.endswith("ed") and word not in ED_NOUNS)
        or (word.endswith("est") and word not in EST_NOUNS)
    )


def find_others(text: str) -> tuple[str, ...]:
    """Return the nouns of a text with their modifiers, "red hat"; `text` is what follows the head."""
    found = []
    for clause in _CLAUSE.finditer(text):
        for chunk in _chunks(_shift(words_of(clause.group()), clause.start())):
            noun = _noun(chunk)
            if noun is not None and noun.text not in UNSEEN:
                found.append(text[chunk[0].start : noun.end])
    return tuple(found)


def _chunks(words: Sequence[Word]) -> list[list[Word]]:
    """Split words at determiners, prepositions, relatives, verbs and participles."""
    chunks: list[list[Word]] = [[]]
    for word in words:
        holding = word.text.endswith("ing") and word.text not in ING_NOUNS
        if holding or word.text in STOPS or word.text in DETERMINERS:
            chunks.append([])
        else:
            chunks[-1].append(word)
    return chunks


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
