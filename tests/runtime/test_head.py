import csv
from pathlib import Path

import pytest

from refdiff.runtime.head import find_head

ROWS = tuple(
    csv.DictReader(
        (Path(__file__).parents[1] / "data_files/head_words.csv").read_text(encoding="utf-8").splitlines()
    )
)
"""Phrases and their head words; the README next to the file says how they were labeled."""

HELD_OUT = slice(3, None, 4)


def found(text: str) -> str:
    """Return the head as it stands in `text`, or nothing."""
    head = find_head(text)
    return text[head.start : head.end] if head else ""


def accuracy(rows: tuple[dict[str, str], ...]) -> float:
    return sum(found(row["phrase"]) == row["head"] for row in rows) / len(rows)


@pytest.mark.parametrize("style", ["refcoco", "refcoco+", "refcocog"])
def test_the_heads_of_each_style_are_found(style: str) -> None:
    rows = tuple(row for row in ROWS if row["style"] == style)
    assert len(rows) >= 100
    assert accuracy(rows) >= 0.97


def test_the_heads_of_phrases_that_no_rule_was_written_for_are_found() -> None:
    assert accuracy(ROWS[HELD_OUT]) >= 0.95


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("person not looking at camera", "person"),
        ("man directly behind", "man"),
        ("guy really close", "guy"),
        ("the very blurry one", "one"),
        ("not red", "red"),
        ("far away", ""),
        ("please", ""),
    ],
)
def test_adverbs_are_no_nouns(text: str, head: str) -> None:
    assert found(text) == head


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("green and yellow train", "train"),
        ("black, white and brown dog", "dog"),
        ("light brown and white dog", "dog"),
        ("tall or short vase", "vase"),
        ("man and woman", "man"),
        ("orange and apple", "orange"),
        ("white and black", "black"),
    ],
)
def test_and_joins_modifiers_but_not_nouns(text: str, head: str) -> None:
    assert found(text) == head


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("way in back lady", "lady"),
        ("way in the back lady", "lady"),
        ("way left zebra", "zebra"),
        ("bus way in the back", "bus"),
        ("way right", "right"),
        ("way over on the right", ""),
        ("drive way", "way"),
    ],
)
def test_way_is_an_adverb(text: str, head: str) -> None:
    assert found(text) == head


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("that guy", "guy"),
        ("all that food", "food"),
        ("that in the back", ""),
        ("bag that's black", "bag"),
        ("all of the men", "men"),
        ("half the pizza", "pizza"),
    ],
)
def test_a_first_that_is_a_determiner(text: str, head: str) -> None:
    assert found(text) == head


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("there is a person in a raincoat", "person"),
        ("There\u2019s a red mug", "mug"),
        ("this is the smaller bear", "bear"),
        ("it is on the left", ""),
        ("pick up the red mug", "mug"),
        ("pick up truck", "truck"),
        ("please find me the blue block", "block"),
        ("find red mug", "mug"),
        ("can you see the mug on the left", "mug"),
        ("where is the mug", "mug"),
        ("who is holding the ball", ""),
        ("on left guy in red", "guy"),
        ("on the right side of the bus", ""),
        ("look", "look"),
    ],
)
def test_words_that_lead_to_the_thing_are_passed_over(text: str, head: str) -> None:
    assert found(text) == head


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("the skateboard the boy is standing on", "skateboard"),
        ("the guy nobody looks at", "guy"),
        ("surfboard she is carrying", "surfboard"),
        ("the black chair no one is in", "chair"),
    ],
)
def test_a_second_noun_phrase_opens_a_clause(text: str, head: str) -> None:
    assert found(text) == head


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("holding umbrella", ""),
        ("carrying case", "case"),
        ("riding a horse", ""),
        ("eating cow", "cow"),
        ("man facing us", "man"),
        ("the faces on the left", "faces"),
        ("man faces camera", "man"),
        ("cut sandwich", "sandwich"),
        ("cut off person", "person"),
        ("piece cut off", "piece"),
        ("see through red umbrella", "umbrella"),
    ],
)
def test_what_a_participle_acts_on_is_not_the_head(text: str, head: str) -> None:
    assert found(text) == head


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("33", "33"),
        ("22 in white", "22"),
        ("#12", "12"),
        ("number 5", "number"),
        ("guy number 22", "guy"),
        ("number 12 bus", "bus"),
        ("player two", "player"),
    ],
)
def test_a_number_names_the_thing_only_if_nothing_else_does(text: str, head: str) -> None:
    assert found(text) == head


@pytest.mark.slow
def test_a_text_far_too_long_for_clip_is_read_in_linear_time() -> None:
    assert found("dog " * 100_000) == "dog"
