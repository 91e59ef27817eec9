"""Phrases in the style of RefCOCO, each referring to exactly one object.

In: a scene and a generator. Out: `ReferringPhrase`s. A phrase is worded only after `matches` has found its
description unambiguous.
"""

from dataclasses import dataclass, replace

import numpy as np

from refdiff.miniature.scenes.description import PLACES, RELATIONS, Description, Relation, matches
from refdiff.miniature.scenes.layout import COLOURS
from refdiff.miniature.scenes.scene import RenderedScene
from refdiff.miniature.scenes.shapes import KINDS

# Weights before rejection: kind and colour nearly always work, the others often do not. The resulting shares
# are about .20 kind, .28 colour, .10 size, .26 place, .10 relation, .06 without kind.
_FAMILIES: dict[str, float] = {
    "kind": 0.12,
    "colour": 0.13,
    "size": 0.26,
    "place": 0.40,
    "relation": 0.06,
    "kindless": 0.03,
}
_REDUNDANT = 0.2  # share of phrases with a place or size that they do not need
_DRAFTS = 10  # attempts per family
_PLACE_WEIGHTS: dict[str, float] = {
    "left": 0.42,
    "right": 0.42,
    "top": 0.03,
    "bottom": 0.03,
    "back": 0.03,
    "front": 0.03,
    "middle": 0.04,
}
_SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium",),
    "large": ("big", "big", "large"),
}
_BEFORE: dict[str, tuple[str, ...]] = {
    "left": ("left", "left", "leftmost"),
    "right": ("right", "right", "rightmost"),
    "top": ("top",),
    "bottom": ("bottom",),
    "back": ("back",),
    "front": ("front",),
    "middle": ("middle", "center"),
}
_AFTER: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left", "on left", "to the left", "on the far left"),
    "right": ("on the right", "on the right", "on right", "to the right", "on the far right"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom", "on the bottom"),
    "back": ("in the back", "at the back"),
    "front": ("in the front", "at the front"),
    "middle": ("in the middle", "in the center"),
}
_RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "behind": ("behind",),
    "in front of": ("in front of",),
    "next to": ("next to", "beside"),
}
_GENERIC_NOUNS = ("one", "thing", "object")


def _lexicon() -> tuple[str, ...]:
    tables = (_SIZE_WORDS, _BEFORE, _AFTER, _RELATION_WORDS)
    phrases = [phrase for table in tables for group in table.values() for phrase in group]
    texts = ("the", *phrases, *_GENERIC_NOUNS, *COLOURS, *KINDS)
    return tuple(sorted({word for text in texts for word in text.split()}))


LEXICON: tuple[str, ...] = _lexicon()
"""Every word that a phrase can contain, in alphabetical order."""


@dataclass(frozen=True)
class ReferringPhrase:
    """A phrase and the object it refers to.

    Attributes:
        phrase: lower case, words of `LEXICON`, single spaces.
        target: index of the object and its mask.
        cues: those of kind, colour, size, place, relation that the phrase uses.
        description: its content; `matches` returns exactly `target` for it.
    """

    phrase: str
    target: int
    cues: frozenset[str]
    description: Description


def _draw_word(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _noun(description: Description, generic: str, rng: np.random.Generator) -> str:
    """Return size, colour and kind, in this order, without article."""
    size = _draw_word(_SIZE_WORDS[description.size], rng) if description.size else ""
    return " ".join(word for word in (size, description.colour or "", description.kind or generic) if word)


def _anchor(scene: RenderedScene, anchor: int, rng: np.random.Generator) -> str:
    """Name the other object of a relation, by kind if that is enough, else by colour and kind."""
    item = scene.objects[anchor]
    enough = matches(scene, Description(kind=item.kind)) == (anchor,)
    named = Description(kind=item.kind, colour=None if enough and rng.random() < 0.6 else item.colour)
    return "the " + _noun(named, "", rng)


def _is_superlative(words: str) -> bool:
    """Return whether the words compare several objects, which makes no sense for a single one."""
    return "most" in words or "far" in words


def _phrase(scene: RenderedScene, description: Description, rng: np.random.Generator) -> str:
    """Word a description."""
    plain = description.size is None and description.colour is None
    generic = "thing" if plain and description.place is None else _draw_word(_GENERIC_NOUNS, rng)
    noun, article = _noun(description, generic, rng), "the " if rng.random() < 0.5 else ""
    if description.relation is not None:
        words = _draw_word(_RELATION_WORDS[description.relation.word], rng)
        return f"{article}{noun} {words} {_anchor(scene, description.relation.anchor, rng)}"
    if description.place is None:
        return article + noun
    alone = len(matches(scene, replace(description, place=None))) == 1
    table, before = (_BEFORE, True) if rng.random() < 0.5 else (_AFTER, False)
    fitting = tuple(words for words in table[description.place] if not (alone and _is_superlative(words)))
    place = _draw_word(fitting, rng)
    return f"{article}{place} {noun}" if before else f"{article}{noun} {place}"


def _is_size_word_fair(scene: RenderedScene, target: int, description: Description) -> bool:
    """Return whether the size word is also right relative to the similar objects, as people use it."""
    peers = matches(scene, replace(description, size=None))
    sizes = {scene.objects[index].size for index in peers if index != target}
    own = scene.objects[target].size
    return len(sizes) == 2 if own == "medium" else own not in sizes


def _draft(scene: RenderedScene, target: int, family: str, rng: np.random.Generator) -> Description:
    """Draft a description of the target in the style of `family`; it may be ambiguous."""
    item = scene.objects[target]
    colour = item.colour if rng.random() < 0.5 else None
    if family == "kind":
        return Description(kind=item.kind)
    if family == "colour":
        return Description(kind=item.kind, colour=item.colour)
    if family == "size":
        return Description(kind=item.kind, colour=colour, size=item.size)
    place = str(rng.choice(PLACES, p=[_PLACE_WEIGHTS[name] for name in PLACES]))
    if family == "place":
        size = item.size if rng.random() < 0.12 else None
        return Description(kind=item.kind, colour=colour, size=size, place=place)
    if family == "relation":
        anchors = [index for index in range(len(scene.objects)) if index != target]
        relation = Relation(_draw_word(RELATIONS, rng), int(rng.choice(anchors)))
        return Description(kind=item.kind, colour=colour, relation=relation)
    if rng.random() < 0.6:
        return Description(colour=item.colour, place=place if rng.random() < 0.3 else None)
    return Description(place=place)


def _is_anchor_clear(scene: RenderedScene, anchor: int) -> bool:
    item = scene.objects[anchor]
    return matches(scene, Description(kind=item.kind, colour=item.colour)) == (anchor,)


def _singles_out(scene: RenderedScene, target: int, description: Description) -> bool:
    if matches(scene, description) != (target,):
        return False
    if description.relation is not None and not _is_anchor_clear(scene, description.relation.anchor):
        return False
    bare = replace(description, place=None, relation=None)
    return bare.size is None or _is_size_word_fair(scene, target, bare)


def _is_redundant(scene: RenderedScene, target: int, description: Description) -> bool:
    """Return whether the description stays unambiguous without its place or size."""
    without_place, without_size = replace(description, place=None), replace(description, size=None)
    shorter_ones = [shorter for shorter in (without_place, without_size) if shorter != description]
    return any(_singles_out(scene, target, shorter) for shorter in shorter_ones)


def _is_fit(scene: RenderedScene, target: int, draft: Description, *, may_repeat: bool) -> bool:
    return _singles_out(scene, target, draft) and (may_repeat or not _is_redundant(scene, target, draft))


def _describe(scene: RenderedScene, target: int, rng: np.random.Generator) -> Description | None:
    """Draw an unambiguous description of the target, or None if many drafts fail.

    The families get a few drafts each, in an order drawn by weight; the first unambiguous one is taken.
    A redundant one is allowed at times, and always if nothing shorter works.
    """
    names, weights = tuple(_FAMILIES), tuple(_FAMILIES.values())
    order = [str(name) for name in rng.choice(names, len(names), replace=False, p=weights)]
    for may_repeat in (bool(rng.random() < _REDUNDANT), True):
        for family in order:
            for _ in range(_DRAFTS):
                draft = _draft(scene, target, family, rng)
                if _is_fit(scene, target, draft, may_repeat=may_repeat):
                    return draft
    return None


def _cues(description: Description) -> frozenset[str]:
    names = ("kind", "colour", "size", "place", "relation")
    return frozenset(name for name in names if getattr(description, name) is not None)


def refer(scene: RenderedScene, rng: np.random.Generator) -> tuple[ReferringPhrase, ...]:
    """Draw one phrase for each object that can be singled out.

    Args:
        scene: the scene.
        rng: draws the wording; the same state gives the same phrases.

    Returns:
        At most one phrase per object, ordered by target.
    """
    found = []
    for target in range(len(scene.objects)):
        description = _describe(scene, target, rng)
        if description is not None:
            found.append(
                ReferringPhrase(_phrase(scene, description, rng), target, _cues(description), description)
            )
    return tuple(found)


FALSEHOODS = ("kind", "colour", "place")
"""What is false in a phrase of `mislead`: the kind, the colour of the kind, or its place or relation."""


def mislead(scene: RenderedScene, falsehood: str, rng: np.random.Generator) -> str | None:
    """Draw a phrase that fits no object of the scene.

    Args:
        scene: the scene.
        falsehood: one of `FALSEHOODS`. With "place" exactly one object fits but for its place or relation.
        rng: draws the wording.

    Returns:
        None where many drafts fit an object after all.
    """
    for _ in range(2 * _DRAFTS):
        draft = _mislead(scene, falsehood, rng)
        if not matches(scene, draft):
            return _phrase(scene, draft, rng)
    return None


def _mislead(scene: RenderedScene, falsehood: str, rng: np.random.Generator) -> Description:
    """Draft a description that is likely to fit nothing."""
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    if falsehood == "kind":
        kinds = [kind for kind in KINDS if kind not in {each.kind for each in scene.objects}]
        colour = _draw_word(tuple(COLOURS), rng) if rng.random() < 0.5 else None
        place = _draw_word(PLACES, rng) if rng.random() < 0.4 else None
        return Description(kind=_draw_word(tuple(kinds), rng), colour=colour, place=place)
    if falsehood == "colour":
        return Description(kind=item.kind, colour=_draw_word(tuple(COLOURS), rng))
    bare = Description(kind=item.kind, colour=item.colour if rng.random() < 0.5 else None)
    if len(matches(scene, bare)) != 1:
        return bare  # fits several: the draft is refused
    if rng.random() < 0.6:
        sides = tuple(place for place in PLACES if place != "middle")
        return replace(bare, place=_draw_word(sides, rng))
    others = [index for index, each in enumerate(scene.objects) if each is not item]
    if not others:
        return bare
    return replace(bare, relation=Relation(_draw_word(RELATIONS, rng), int(rng.choice(others))))
