"""The head noun of a referring phrase, and the other nouns of it.

No model is needed: referring phrases are short, and the head is in their first noun chunk. In: text. Out:
words with offsets, which count characters of the given text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from refdiff.runtime.lexicon import (
    ADVERBS,
    COLORS,
    COMPOUNDS,
    DETERMINERS,
    ED_NOUNS,
    EST_NOUNS,
    HOLDINGS,
    INDEFINITES,
    ING_NOUNS,
    LY_NOUNS,
    MODIFIERS,
    PARTICIPLES,
    PARTICLES,
    PARTS,
    PHRASALS,
    PLACES,
    STOPS,
    UNSEEN,
    VERBS_OR_NOUNS,
)


class Word(NamedTuple):
    """One word, lower case with straight apostrophes, and its offsets."""

    text: str
    start: int
    end: int


_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_CLAUSE = re.compile(r"[^,;:.!?()]+")
_MOST_WORDS = 77
"""CLIP reads fewer words; it bounds the time that a text of any length takes."""
_ENDINGS = (("ing", ING_NOUNS), ("ed", ED_NOUNS), ("est", EST_NOUNS), ("ly", LY_NOUNS), ("less", ()))
"""Endings of words that describe, and the nouns that end so too."""

_NO_NOUNS = STOPS | DETERMINERS
_DETERMINED = rf"(?= (?:{'|'.join(sorted(DETERMINERS))}|that)\b)"
_SIDES = "|".join(PLACES)
_OPENING = re.compile(
    r"(?:please )?(?:"
    r"(?:there|here|this|that|these|those|it)(?:'s| is| are| was| were)"
    rf"|(?:(?:he|she|where|who|which one)(?:'s| is| are)|its|thats|theres){_DETERMINED}"
    r"|(?:find|select|segment|locate|choose|grab|get|bring)(?: me| us)?"
    rf"|(?:(?:can|could|would) you |i (?:want|need|mean|see) ?(?:to )?)?(?:please )?"
    r"(?:find|show|give|get|bring|grab|take|select|choose|pick|segment|locate|point|click|look|see)?"
    rf"(?: me| us)?(?: up| out| at| for| to| on)?{_DETERMINED}"
    rf"|(?:way |far |over )?(?:in|on|at|to)(?: far)? (?:{_SIDES})(?: (?:{_SIDES}|{'|'.join(PARTS)}))*"
    rf"(?! (?:of|{_SIDES}|{'|'.join(PARTS)})\b)"
    rf"|way (?:in|on|at|to) the (?:{_SIDES})(?! (?:of|{'|'.join(PARTS)})\b)"
    r")(?= \S)"
)
"""Words in front of the noun phrase of a sentence, a command or a place ("way in back lady")."""


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
    chunks = [_chunk(_skip_opening(clause[:_MOST_WORDS])) for clause in clauses]
    nouns = [head for head in map(_noun, chunks) if head is not None]
    if nouns:
        return nouns[0]
    loose = next((chunk for chunk in chunks if chunk), ())
    described = [word for word in loose if not _is_adverb(word.text)]
    named = [word for word in described if word.text not in PLACES] or described
    return named[-1] if named else None


def _shift(words: Sequence[Word], by: int) -> tuple[Word, ...]:
    return tuple(Word(word.text, word.start + by, word.end + by) for word in words)


def _skip_opening(words: Sequence[Word]) -> Sequence[Word]:
    """Drop what only leads to the thing: "there is", "find me", "way in back"."""
    match = _OPENING.match(" ".join(word.text for word in words))
    return words[len(match.group().split()) :] if match else words


def _chunk(words: Sequence[Word]) -> tuple[Word, ...]:
    """Return the words up to the first preposition, relative, verb or second noun phrase.

    Determiners, and the "and" between two modifiers, are left out.
    """
    chunk: list[Word] = []
    for i, word in enumerate(words):
        follower = words[i + 1].text if i + 1 < len(words) else ""
        named = _noun(chunk) is not None
        if named and (word.text in DETERMINERS or word.text in INDEFINITES):
            break  # "the skateboard the boy is standing on"
        if word.text in DETERMINERS or (not named and _is_passed_over(words, i, chunk)):
            continue
        if _ends_chunk(word.text, follower, named=named):
            break
        chunk.append(word)
    return tuple(chunk)


def _ends_chunk(word: str, follower: str, *, named: bool) -> bool:
    if f"{word}-{follower}" in COMPOUNDS:
        return False
    if word in VERBS_OR_NOUNS:
        return named
    if word in HOLDINGS or word in STOPS:
        return True
    return follower in DETERMINERS and word.endswith("ing") and word not in ING_NOUNS


def _is_passed_over(words: Sequence[Word], i: int, chunk: Sequence[Word]) -> bool:
    """Return whether word `i` stands in front of the noun without ending the chunk.

    It is a first "that" ("that guy"), the "of" of "all of the men", the "and" of "green and yellow train", or
    one of two words that describe together ("pick up truck", "cut off person").
    """
    texts = ["", *(word.text for word in words), "", ""]
    before, word, follower, second = texts[i : i + 4]
    if word in ("that", "of") and not chunk:
        return True
    if word in ("and", "or") and chunk:
        return _is_modifier(follower, "") or follower in COLORS
    opens = _are_phrasal(word, follower) and second != "" and second not in _NO_NOUNS
    closes = _are_phrasal(before, word) and follower != "" and follower not in _NO_NOUNS
    return opens or closes


def _are_phrasal(word: str, particle: str) -> bool:
    is_participle = word.endswith("ed") or word in PARTICIPLES
    return f"{word}-{particle}" in PHRASALS or (is_participle and particle in PARTICLES)


def _noun(chunk: Sequence[Word]) -> Word | None:
    """Return the last word of the first run of nouns."""
    head = None
    for i, word in enumerate(chunk):
        follower = chunk[i + 1].text if i + 1 < len(chunk) else ""
        before = chunk[i - 1].text if i else ""
        opens, closes = f"{word.text}-{follower}" in COMPOUNDS, f"{before}-{word.text}" in COMPOUNDS
        numbers = word.text == "number" and follower[:1].isdigit() and (head or i + 2 < len(chunk))
        if opens or closes or not (numbers or _is_modifier(word.text, follower)):
            head = word
        elif head is not None:
            break
    return head


def _is_modifier(word: str, follower: str) -> bool:
    """Return whether `word` describes: listed, number, possessive, participle, superlative.

    Of a word with hyphens, the last part counts ("half-eaten").
    """
    last = word.rpartition("-")[2]
    return (
        last in MODIFIERS
        or word[:1].isdigit()
        or word.endswith(("'s", "s'"))
        or (word == "light" and follower in COLORS)
        or any(last.endswith(ending) and last not in nouns for ending, nouns in _ENDINGS)
    )


def _is_adverb(word: str) -> bool:
    return word in ADVERBS or (word.endswith("ly") and word not in LY_NOUNS)


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
