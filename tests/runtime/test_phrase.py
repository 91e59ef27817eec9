import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.errors import InputError, MissingDependencyError
from refdiff.runtime import phrase as phrase_module
from refdiff.runtime.phrase import Relation, direction, parse_phrase

HEADS = {
    "left guy": "guy",
    "guy on left": "guy",
    "the small red mug on the left": "mug",
    "man in blue shirt": "man",
    "guy blue shirt": "guy",
    "woman's left hand": "hand",
    "second from left": "second",
    "far right": "right",
    "a piece of pizza": "piece",
    "red one": "one",
    "the thing behind the bowl": "thing",
    "bottle left of the blue book": "bottle",
    "man standing next to a horse": "man",
    "standing man": "man",
    "guy facing away, striped shirt": "guy",
    "the man who is holding a ball": "man",
    "kid that's wearing red": "kid",
    "chair closest to us": "chair",
    "left, red shirt": "shirt",
    "big, red mug": "mug",
    "red, on the left": "red",
    "orange on left": "orange",
    "the tallest": "tallest",
    "light brown bear": "bear",
    "traffic light": "light",
    "cutting board on the right": "board",
    "tank top girl": "girl",
    "her left arm": "arm",
    "2nd zebra": "zebra",
    "car right": "car",
    "white bed": "bed",
    "red vest": "vest",
    "Mug": "Mug",
    "THE RED MUG": "MUG",
}


@pytest.mark.parametrize(("text", "head"), HEADS.items())
def test_the_head_is_the_noun_of_the_first_chunk(text: str, head: str) -> None:
    assert parse_phrase(text).root == head


@pytest.mark.parametrize("text", ["who is holding the ball", "on the left", "in the red shirt"])
def test_a_phrase_without_a_head_is_its_own_root(text: str) -> None:
    phrase = parse_phrase(text)
    assert phrase.root == text
    assert phrase.root_end == len(text)


def test_the_released_root_is_found_inside_another_word() -> None:
    text = "humanlike statue next to the man"
    released, fixed = (parse_phrase(text, focus="man", word_boundaries=b) for b in (False, True))
    assert text[: released.root_end] == "human"
    assert text[: fixed.root_end] == text


def test_a_root_ends_where_it_stands() -> None:
    phrase = parse_phrase("the small red mug on the left")
    assert phrase.text[: phrase.root_end] == "the small red mug"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("mug on the left", "left"),
        ("leftmost mug", "left"),
        ("mug on the far right", "right"),
        ("top left mug", "top"),
        ("mug at the bottom", "bottom"),
        ("the center mug", "middle"),
        ("mug in the middle", "middle"),
        ("mug in the front", "bottom"),
        ("mug closest to the camera", "bottom"),
        ("mug in back", "top"),
        ("mug in the background", "top"),
        ("man behind", "top"),
        ("mug on the left side of the picture", "left"),
        ("left of the two mugs", "left"),
        ("the mug", None),
        ("the leftover pizza", None),
        ("man with his back to us", None),
        ("mug to the left of the bowl", None),
        ("mug behind the bowl on the left", "left"),
        ("mug in front of the bowl", None),
        ("mug right next to the bowl", None),
    ],
)
def test_places_are_sides_of_the_picture(text: str, place: str | None) -> None:
    assert parse_phrase(text).place == place


@pytest.mark.parametrize(
    ("text", "kind", "other"),
    [
        ("bottle left of the blue book", "left of", "the blue book"),
        ("the bottle to the right of the book", "right of", "the book"),
        ("mug on the left side of the table", "left of", "the table"),
        ("the mug in front of the red bowl", "in front of", "the red bowl"),
        ("kid right behind the table", "behind", "the table"),
        ("mug next to the bowl on the left", "next to", "the bowl"),
        ("mug near a plate", "next to", "a plate"),
        ("mug closest to the plate", "next to", "the plate"),
        ("mug beside the bowl", "next to", "the bowl"),
        ("lamp above the bed", "above", "the bed"),
        ("cat on top of the bed", "above", "the bed"),
        ("cat underneath the bed, left", "below", "the bed"),
        ("mug that is bigger than the bowl", "bigger than", "the bowl"),
        ("mug smaller than the bowl", "smaller than", "the bowl"),
    ],
)
def test_relations_name_the_other_thing(text: str, kind: str, other: str) -> None:
    assert parse_phrase(text).relation == Relation(kind, other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "left guy",
        "guy on the left",
        "mug near the camera",
        "left side of the picture",
        "the right of the two",
    ],
)
def test_sides_of_the_picture_are_no_relations(text: str) -> None:
    assert parse_phrase(text).relation is None


@pytest.mark.parametrize(
    ("text", "superlative", "size"),
    [
        ("the biggest mug", "largest", None),
        ("smallest mug on the left", "smallest", None),
        ("the big red mug", None, "large"),
        ("tiny mug", None, "small"),
        ("mug beside the big bowl", None, None),
        ("mug beside the largest bowl", None, None),
        ("the mug", None, None),
    ],
)
def test_sizes_belong_to_the_head(text: str, superlative: str | None, size: str | None) -> None:
    phrase = parse_phrase(text)
    assert (phrase.superlative, phrase.size) == (superlative, size)


@pytest.mark.parametrize(
    ("text", "released", "fixed"),
    [
        ("mug on the left", "left", "left"),
        ("right mug", "right", "right"),
        ("Right mug", None, "right"),
        ("LEFT mug on the right", "right", "left"),
        ("leftmost mug", "left", "left"),
        ("right of the left mug", "left", "left"),
        ("leftover pizza", "left", None),
        ("bright mug", "right", None),
        ("leftover pizza on the right", "left", "right"),
        ("the mug", None, None),
    ],
)
def test_direction_looks_for_left_first(text: str, released: str | None, fixed: str | None) -> None:
    assert direction(text, word_boundaries=False) == released
    assert direction(text, word_boundaries=True) == fixed


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("the red mug", ()),
        ("mug on the left", ()),
        ("mug on the left side of the picture", ()),
        ("guy with a red hat", ("red hat",)),
        ("guy blue shirt", ("blue shirt",)),
        ("woman holding the small dog in the car", ("small dog", "car")),
        ("woman holding small dog", ("small dog",)),
        ("mug left of the blue book", ("the blue book",)),
        ("guy with the hat next to the tall lamp on the right", ("the tall lamp", "hat")),
        ("cup with bowl with fork with pan with lid", ("bowl", "fork", "pan")),
        ("who is it", ()),
    ],
)
def test_the_other_things_of_a_phrase_are_named_the_relations_first(
    text: str, others: tuple[str, ...]
) -> None:
    assert parse_phrase(text).others == others


def test_a_focus_word_overrides_the_reader() -> None:
    phrase = parse_phrase("man in blue Shirt", focus="shirt", word_boundaries=True)
    assert (phrase.root, phrase.root_end) == ("Shirt", 17)


@pytest.mark.parametrize("focus", ["mug", " ", ""])
def test_a_focus_word_that_is_not_in_the_phrase_is_refused(focus: str) -> None:
    with pytest.raises(InputError, match="focus word"):
        parse_phrase("man in blue shirt", focus=focus)


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\n\t", "\x00", "&nbsp;", "?!", "🍕🍕", "左のカップ", "кружка 2", "٣", "mug \ud800"],
)
def test_what_is_no_english_phrase_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="got") as caught:
        parse_phrase(text)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("text", ["33", "2", "# 12", "\uff12"])
def test_a_number_is_a_phrase(text: str) -> None:
    phrase = parse_phrase(text)
    assert phrase.root in ("33", "2", "12")
    assert phrase.text[: phrase.root_end].endswith(phrase.root)


def test_a_refused_phrase_is_shown_as_written_without_its_control_characters() -> None:
    with pytest.raises(InputError, match="got phrase '左のカップ'"):
        parse_phrase("左の\u202e\x07カップ")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("the man\u2019s \u201cred\u201d mug", 'the man\'s "red" mug'),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("the man&#39;s mug", "the man's mug"),
        ("the manâ€™s mug", "the man's mug"),
        ("cafÃ© table", "caf\u00e9 table"),
        ("cafe\u0301 table", "caf\u00e9 table"),
        ("red\x00 mug", "red mug"),
        ("The RED Mug", "The RED Mug"),
    ],
)
def test_a_phrase_is_cleaned_as_clip_cleans_it(text: str, clean: str) -> None:
    assert parse_phrase(text).text == clean


def test_offsets_are_those_of_the_cleaned_text() -> None:
    phrase = parse_phrase("the man&rsquo;s  hat", word_boundaries=True)
    assert (phrase.root, phrase.text[: phrase.root_end]) == ("hat", "the man's hat")
    assert parse_phrase("the man\u2019s hat", focus="man\u2019s").root == "man's"


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="NoneType"):
        parse_phrase(None)  # type: ignore[arg-type]


def test_white_space_is_collapsed() -> None:
    assert parse_phrase("  the \t red\n mug ").text == "the red mug"


_VOCABULARY = """the left right of mug man's in front behind biggest small red , . who standing next to two
picture back bigger than us s' light cutting board"""


@given(st.lists(st.sampled_from(_VOCABULARY.split()), max_size=12), st.booleans())
def test_any_order_of_words_is_read(parts: list[str], word_boundaries: bool) -> None:
    phrase = parse_phrase(" ".join(["a", *parts]), word_boundaries=word_boundaries)
    assert phrase.root in phrase.text
    assert phrase.text[: phrase.root_end].endswith(phrase.root)
    assert phrase.relation is None or phrase.relation.other in phrase.text


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        phrase = parse_phrase(text)
    except InputError:
        return
    assert phrase.text[: phrase.root_end].endswith(phrase.root)


def test_a_missing_spacy_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    phrase_module._spacy_pipeline.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingDependencyError, match="pip install spacy"):
        parse_phrase("left guy", reader="spacy")


def test_a_missing_spacy_model_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        raise OSError(name)

    phrase_module._spacy_pipeline.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(MissingDependencyError, match="spacy download en_core_web_sm"):
        parse_phrase("left guy", reader="spacy")


def test_spacy_gives_the_first_root_or_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(text: str) -> list[SimpleNamespace]:
        deps = {"who": "nsubj", "holds": "ROOT"}
        starts = [text.index(word) for word in text.split()]
        return [
            SimpleNamespace(text=word, idx=start, dep_=deps.get(word, "det"))
            for word, start in zip(text.split(), starts, strict=True)
        ]

    phrase_module._spacy_pipeline.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: parsed))
    try:
        assert parse_phrase("the who holds it", reader="spacy").root == "who"
        assert parse_phrase("the it", reader="spacy").root == "the it"
    finally:
        phrase_module._spacy_pipeline.cache_clear()
