"""Phrases: each singles out its target, in known words, and the formal reading means what it says."""

import re
from functools import cache

import numpy as np
import pytest

from refdiff.miniature.scenes import LEXICON, RenderedScene, SceneObject, refer, render_scene
from refdiff.miniature.scenes.description import PLACES, Description, Relation, matches, related
from refdiff.miniature.scenes.layout import COLOURS
from refdiff.miniature.scenes.phrases import ReferringPhrase
from refdiff.miniature.scenes.shapes import KINDS

SEEDS = range(150)
SIZE_WORDS = {"small": "small", "little": "small", "tiny": "small", "medium": "medium"}
SIZE_WORDS |= {"big": "large", "large": "large"}
SIDES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1), "back": (1, 1), "front": (1, -1)}
RELATION = re.compile(r" (?:to the )?(left of|right of|behind|in front of|next to|beside) the ")


@cache
def phrases_of(seed: int) -> tuple[RenderedScene, tuple[ReferringPhrase, ...]]:
    scene = render_scene(seed)
    return scene, refer(scene, np.random.default_rng(seed))


def table(*things: tuple[str, str, str, int, int]) -> RenderedScene:
    """A 200 x 100 scene of (kind, colour, size, centre x, base y) things, 20 px each, without a picture."""
    objects = tuple(
        SceneObject(kind, colour, size, (x, y - 10), y, 20.0, 400, (x - 10, y - 20, x + 10, y))
        for kind, colour, size, x, y in things
    )
    masks = np.zeros((len(things), 100, 200), np.bool_)
    return RenderedScene(0, np.zeros((100, 200, 3), np.uint8), masks, objects)


def fitting(scene: RenderedScene, words: list[str]) -> list[int]:
    """Objects that kind, colour and size words allow, read from the text alone."""
    return [
        index
        for index, item in enumerate(scene.objects)
        if all(word == item.kind for word in words if word in KINDS)
        and all(word == item.colour for word in words if word in COLOURS)
        and all(SIZE_WORDS[word] == item.size for word in words if word in SIZE_WORDS)
    ]


def holds(word: str, item: SceneObject, anchor: SceneObject) -> bool:
    """A relation as one would see it at a glance."""
    across, nearer = item.centre_xy[0] - anchor.centre_xy[0], item.base_y - anchor.base_y
    if word in ("left of", "right of"):
        return across < 0 if word == "left of" else across > 0
    if word in ("behind", "in front of"):
        in_line = abs(across) < (item.diameter_px + anchor.diameter_px) / 2
        return in_line and (nearer < 0 if word == "behind" else nearer > 0)
    return bool(np.hypot(across, nearer) < item.diameter_px + anchor.diameter_px)


def read(scene: RenderedScene, phrase: str) -> list[int]:
    """What a plain reader makes of the text: a second, simpler reading that knows no margins."""
    about, *rest = RELATION.split(phrase)
    words = about.split()
    fits = fitting(scene, words)
    if rest:
        (anchor,) = fitting(scene, rest[1].split())
        others = [index for index in fits if index != anchor]
        return [index for index in others if holds(rest[0], scene.objects[index], scene.objects[anchor])]
    if {"middle", "center"} & set(words):
        return [sorted(fits, key=lambda index: scene.objects[index].centre_xy[0])[len(fits) // 2]]
    for axis, sign in (
        SIDES[word.removesuffix("most")] for word in words if word.removesuffix("most") in SIDES
    ):
        return [min(fits, key=lambda index: sign * scene.objects[index].centre_xy[axis])]
    return fits


def test_the_same_generator_state_gives_the_same_phrases():
    scene = render_scene(3)
    assert refer(scene, np.random.default_rng(5)) == refer(scene, np.random.default_rng(5))


def test_another_state_words_it_differently():
    scene = render_scene(3)
    drawn = {tuple(r.phrase for r in refer(scene, np.random.default_rng(seed))) for seed in range(10)}
    assert len(drawn) > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_every_phrase_singles_out_its_target(seed):
    scene, referrals = phrases_of(seed)
    for referral in referrals:
        assert matches(scene, referral.description) == (referral.target,), referral.phrase


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plain_reading_of_the_text_finds_the_same_target(seed):
    scene, referrals = phrases_of(seed)
    for referral in referrals:
        if "next to" in referral.phrase or "beside" in referral.phrase:
            assert referral.target in read(scene, referral.phrase), referral.phrase
        else:
            assert read(scene, referral.phrase) == [referral.target], referral.phrase


@pytest.mark.parametrize("seed", SEEDS)
def test_cues_name_what_the_phrase_uses(seed):
    scene, referrals = phrases_of(seed)
    for referral in referrals:
        words = referral.phrase.split()
        item = scene.objects[referral.target]
        assert ("kind" in referral.cues) == (referral.description.kind is not None)
        assert "kind" not in referral.cues or item.kind in words
        assert "colour" not in referral.cues or item.colour in words
        assert ("size" in referral.cues) == any(word in SIZE_WORDS for word in words)
        assert not {"place", "relation"} <= referral.cues


@pytest.mark.parametrize("seed", SEEDS)
def test_a_word_outside_the_lexicon_never_occurs(seed):
    for referral in phrases_of(seed)[1]:
        assert set(referral.phrase.split()) <= set(LEXICON)
        assert referral.phrase == " ".join(referral.phrase.lower().split())


@pytest.mark.parametrize("seed", SEEDS)
def test_each_object_gets_one_phrase_at_most_and_in_order(seed):
    targets = [referral.target for referral in phrases_of(seed)[1]]
    assert targets == sorted(set(targets))


@pytest.mark.slow
def test_the_lexicon_is_sorted_and_every_word_of_it_is_used():
    assert list(LEXICON) == sorted(set(LEXICON))
    rng = np.random.default_rng(0)
    scenes = [phrases_of(seed)[0] for seed in SEEDS]
    phrases = [referral.phrase for _ in range(4) for scene in scenes for referral in refer(scene, rng)]
    assert {word for phrase in phrases for word in phrase.split()} == set(LEXICON)


def test_nearly_every_object_can_be_singled_out_and_the_families_are_mixed():
    everything = [referral for seed in SEEDS for referral in phrases_of(seed)[1]]
    objects = sum(len(phrases_of(seed)[0].objects) for seed in SEEDS)
    assert len(everything) > 0.93 * objects
    share = {
        cue: np.mean([cue in r.cues for r in everything]) for cue in ("colour", "size", "place", "relation")
    }
    assert 0.35 < share["colour"] < 0.7
    assert 0.06 < share["size"] < 0.25
    assert 0.18 < share["place"] < 0.4
    assert 0.05 < share["relation"] < 0.18


def test_left_is_the_leftmost_of_those_that_fit_the_rest():
    scene = table(
        ("mug", "red", "small", 20, 50), ("mug", "blue", "small", 60, 50), ("mug", "blue", "small", 150, 50)
    )
    assert matches(scene, Description(kind="mug", place="left")) == (0,)
    assert matches(scene, Description(kind="mug", colour="blue", place="left")) == (1,)
    assert matches(scene, Description(kind="mug", place="right")) == (2,)
    assert matches(scene, Description(kind="mug", place="middle")) == (1,)


def test_left_by_a_hair_is_ambiguous():
    scene = table(("mug", "red", "small", 40, 50), ("mug", "blue", "small", 60, 80))
    assert matches(scene, Description(kind="mug", place="left")) == (0, 1)


def test_a_thing_on_its_own_is_left_only_in_the_left_of_the_picture():
    assert matches(table(("mug", "red", "small", 40, 50)), Description(place="left")) == (0,)
    assert matches(table(("mug", "red", "small", 120, 50)), Description(place="left")) == ()


def test_the_leftmost_of_two_on_the_right_is_not_on_the_left():
    scene = table(("mug", "red", "small", 130, 50), ("mug", "red", "small", 180, 50))
    assert matches(scene, Description(kind="mug", place="left")) == ()


def test_the_middle_of_two_is_ambiguous():
    scene = table(("mug", "red", "small", 60, 50), ("mug", "red", "small", 140, 50))
    assert matches(scene, Description(kind="mug", place="middle")) == (0, 1)


def test_front_and_back_follow_where_things_stand():
    scene = table(("ball", "red", "small", 60, 40), ("ball", "red", "small", 140, 90))
    assert matches(scene, Description(kind="ball", place="back")) == (0,)
    assert matches(scene, Description(kind="ball", place="top")) == (0,)
    assert matches(scene, Description(kind="ball", place="front")) == (1,)
    assert matches(scene, Description(kind="ball", place="bottom")) == (1,)


def test_a_relation_never_holds_between_a_thing_and_itself():
    scene = table(("mug", "red", "small", 60, 50), ("bowl", "red", "small", 140, 50))
    assert not related(scene, 0, Relation("left of", 0), slack=1.0)


@pytest.mark.parametrize(
    ("word", "x", "y", "holds"),
    [
        ("left of", 40, 60, True),
        ("left of", 95, 60, False),
        ("right of", 160, 60, True),
        ("right of", 40, 60, False),
        ("behind", 102, 45, True),
        ("behind", 40, 45, False),
        ("in front of", 102, 75, True),
        ("in front of", 102, 45, False),
        ("next to", 125, 62, True),
        ("next to", 180, 62, False),
    ],
)
def test_relations_mean_what_they_say(word, x, y, holds):
    scene = table(("bowl", "blue", "small", 100, 60), ("mug", "red", "small", x, y))
    assert related(scene, 1, Relation(word, 0)) is holds


def test_a_relation_two_things_might_have_is_ambiguous():
    scene = table(
        ("bowl", "blue", "small", 100, 60), ("mug", "red", "small", 40, 60), ("mug", "red", "small", 90, 60)
    )
    assert matches(scene, Description(kind="mug", relation=Relation("left of", 0))) == (1, 2)


def test_twins_in_one_spot_are_left_unmentioned():
    scene = table(("mug", "red", "small", 95, 60), ("mug", "red", "small", 105, 62))
    assert refer(scene, np.random.default_rng(0)) == ()


def test_a_lone_thing_is_never_called_leftmost_or_far():
    scene = table(("mug", "red", "small", 20, 60), ("bowl", "blue", "small", 180, 60))
    for seed in range(60):
        for referral in refer(scene, np.random.default_rng(seed)):
            if referral.description.kind is not None or referral.description.colour is not None:
                assert not {"leftmost", "rightmost", "far"} & set(referral.phrase.split())


def test_big_is_not_said_of_the_lesser_of_two_nor_of_one_among_equals():
    scene = table(
        ("mug", "red", "medium", 40, 60), ("mug", "red", "small", 160, 60), ("mug", "red", "large", 100, 95)
    )
    named = {}
    for seed in range(200):
        for referral in refer(scene, np.random.default_rng(seed)):
            for word in referral.phrase.split():
                if word in SIZE_WORDS and referral.description.place is None:
                    named.setdefault(SIZE_WORDS[word], set()).add(referral.target)
    assert named == {"medium": {0}, "small": {1}, "large": {2}}


def test_places_are_the_ones_documented():
    assert set(PLACES) == {"left", "right", "top", "bottom", "back", "front", "middle"}
