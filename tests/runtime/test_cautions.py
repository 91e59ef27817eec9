import csv
from pathlib import Path

import pytest

from refdiff.runtime.cautions import phrase_cautions

FILES = Path(__file__).parents[1] / "data_files"


def read(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((FILES / name).read_text(encoding="utf-8").splitlines()))


ENGLISH = [row["phrase"] for row in read("head_words.csv")]
FOREIGN = read("foreign_phrases.csv")


def looks_foreign(text: str) -> bool:
    return any(" look" in line for line in phrase_cautions(text))


def test_no_english_phrase_looks_foreign() -> None:
    assert [text for text in ENGLISH if looks_foreign(text)] == []


def test_nine_of_ten_foreign_phrases_are_found() -> None:
    found = [row for row in FOREIGN if looks_foreign(row["phrase"])]
    assert len(FOREIGN) >= 60
    assert len(found) >= 0.9 * len(FOREIGN)


@pytest.mark.parametrize("language", ["German", "French", "Spanish", "Italian", "Portuguese", "Dutch"])
def test_the_language_is_named(language: str) -> None:
    cautions = [phrase_cautions(row["phrase"]) for row in FOREIGN if row["language"] == language]
    assert sum(f"{language};" in line for lines in cautions for line in lines) >= 0.8 * len(cautions)


@pytest.mark.parametrize(
    "text",
    [
        "die cast car",
        "van on the left",
        "la lakers player",
        "el train",
        "catchers mit",
        "ET doll",
        "petite lady",
        "blu guy",
        "pain au chocolat",
        "caf\u00e9 table",
        "the rouge one",
        "33",
    ],
)
def test_english_phrases_with_words_of_other_languages_have_no_caution(text: str) -> None:
    assert phrase_cautions(text) == ()


def test_the_caution_names_the_words_and_the_language() -> None:
    expected = 'language: the words "die", "rote", "links" look German; the models read English only'
    assert phrase_cautions("die rote Tasse links") == (expected,)
    assert phrase_cautions("roter Becher") == (
        'language: the word "roter" looks German; the models read English only',
    )


def test_a_part_in_other_letters_is_named() -> None:
    assert phrase_cautions("red \u5de6 mug") == (
        'language: "\u5de6" cannot be read; the models read English only',
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("not a mug", "not"),
        ("mug without a handle", "without"),
        ("Mug w/o handle", "w/o"),
        ("no hat", "no"),
        ("guy who isn\u2019t sitting", "isn\u2019t"),
        ("the chair no one is in", "no"),
    ],
)
def test_a_negation_is_named(text: str, word: str) -> None:
    (caution,) = phrase_cautions(text)
    assert caution.startswith(f'negation: "{word}" is not understood')


@pytest.mark.parametrize("text", ["the knot", "notebook on the left", "nose", "northern bird"])
def test_words_that_contain_a_negation_are_none(text: str) -> None:
    assert phrase_cautions(text) == ()
