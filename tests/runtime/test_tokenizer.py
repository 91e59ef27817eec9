import functools
import gzip
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from refdiff.errors import InputError
from refdiff.runtime.phrase import Phrase, parse_phrase
from refdiff.runtime.tokenizer import END, START, Tokenizer, build_tokenizer_json
from tests.support.fuzzing import fuzz

MERGES = (("g", "u"), ("gu", "y</w>"), ("o", "n</w>"), ("l", "e"), ("f", "t</w>"), ("le", "ft</w>"))
LENGTH = 12
PHRASES = (
    "left guy",
    "The Small RED mug, on the left!",
    "woman's left hand",
    "they're isn't I'll we've he'd I'm it's",
    "player 12 and number 4077",
    "a  lot   of \t white\nspace",
    "half-eaten donut (2nd from right)...",
    "50% off @ the <shop> #1 & co. ~ {x} [y] \\ / | ^ `q`",
    "un café à la crème, naïve façade",
    "the 🍕 on the 🟥 plate 👩‍🍳",
    "antidisestablishmentarianism xqzjwv",
    "''s 's't",
    "",
    " ".join(["mug"] * 90),
)


def _bytes() -> tuple[str, ...]:
    """CLIP's printable stand-ins for the 256 bytes, in its order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return (*map(chr, plain), *(chr(256 + i) for i in range(256 - len(plain))))


def _vocabulary(merges: tuple[tuple[str, str], ...]) -> dict[str, int]:
    letters = _bytes()
    tokens = (*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END)
    return {token: index for index, token in enumerate(tokens)}


SMALL = Tokenizer(build_tokenizer_json(_vocabulary(MERGES), MERGES), LENGTH)
VOCABULARY = _vocabulary(MERGES)
words = st.text(st.characters(codec="utf-8"), max_size=60)


def _phrase(text: str, root: str) -> Phrase:
    return Phrase(text=text, root=root, root_end=text.find(root) + len(root))


def test_a_prompt_is_start_pieces_end_and_end_again() -> None:
    ids = SMALL.diffusion_ids("left guy")
    assert ids.dtype == np.int32
    assert ids.tolist() == [VOCABULARY[t] for t in (START, "left</w>", "guy</w>", *[END] * (LENGTH - 3))]


def test_a_model_padded_with_zeros_gets_them_behind_one_end_token() -> None:
    ids = SMALL.diffusion_ids("left guy", "zero")
    assert ids.tolist() == [
        *(VOCABULARY[t] for t in (START, "left</w>", "guy</w>", END)),
        *[0] * (LENGTH - 4),
    ]
    assert SMALL.diffusion_ids("", "zero").tolist() == [
        VOCABULARY[START],
        VOCABULARY[END],
        *[0] * (LENGTH - 2),
    ]
    assert SMALL.diffusion_ids("left guy", "end").tolist() == SMALL.diffusion_ids("left guy").tolist()


def test_clip_pads_with_zeros_and_says_where_the_end_is() -> None:
    ids, end = SMALL.clip_ids("left guy")
    assert end == 3
    assert ids.tolist() == [
        *(VOCABULARY[t] for t in (START, "left</w>", "guy</w>", END)),
        *[0] * (LENGTH - 4),
    ]


@given(words)
def test_any_text_fits_and_keeps_its_end_token(text: str) -> None:
    ids, end = SMALL.clip_ids(text)
    assert ids.shape == (LENGTH,)
    assert ids[0] == VOCABULARY[START]
    assert ids[end] == VOCABULARY[END]
    assert 1 <= end <= LENGTH - 1


def test_the_empty_prompt_is_start_and_end() -> None:
    assert SMALL.diffusion_ids("").tolist() == [VOCABULARY[START], *[VOCABULARY[END]] * (LENGTH - 1)]


def test_special_tokens_in_a_phrase_are_plain_letters() -> None:
    assert VOCABULARY[END] not in SMALL.diffusion_ids(END + " a")[1:9].tolist()


def test_pieces_know_the_characters_they_stand_for() -> None:
    text = "Left  guy"
    assert [text[p.start_char : p.end_char] for p in SMALL.pieces(text)] == ["Left", "guy"]
    assert [p.text for p in SMALL.pieces(text)] == ["left</w>", "guy</w>"]


def test_a_word_that_is_not_merged_is_several_pieces() -> None:
    assert [p.text for p in SMALL.pieces("mug")] == ["m", "u", "g</w>"]


def test_a_phrase_too_long_is_refused_with_both_numbers() -> None:
    SMALL.check_length("guy " * (LENGTH - 2))
    with pytest.raises(InputError, match="11 tokens, expected at most 10"):
        SMALL.check_length("guy " * (LENGTH - 1))


@pytest.mark.parametrize(("text", "index"), [("left guy", 2), ("guy on left", 1), ("on left, guy", 4)])
def test_the_root_token_is_the_last_piece_of_the_text_up_to_the_root(text: str, index: int) -> None:
    assert SMALL.focus_indices(_phrase(text, "guy"), "root") == (index,)


def test_a_prefix_that_splits_finer_than_the_text_is_clamped_to_the_last_token() -> None:
    assert len(SMALL.pieces("gu")) == 2  # "g", "u</w>", while "guy" is one token
    assert SMALL.focus_indices(_phrase("guy", "gu"), "root") == (1,)


def test_the_root_token_of_a_cut_phrase_stays_inside_the_prompt() -> None:
    text = "guy " * 20 + "left"
    assert SMALL.focus_indices(_phrase(text, "left"), "root") == (LENGTH - 2,)


def test_content_tokens_belong_to_the_thing_they_describe() -> None:
    phrase = parse_phrase("the left guy on a left guy")
    own, others = SMALL.content_indices(phrase)
    assert (own, others) == ((4, 5), (8, 9))  # "the" is three pieces
    assert SMALL.content_indices(parse_phrase("left guy")) == ((1, 2), ())


def test_the_last_and_the_mean_focus_pass_over_punctuation() -> None:
    phrase = _phrase("guy, on left.", "guy")
    assert SMALL.focus_indices(phrase, "last") == (4,)
    assert SMALL.focus_indices(phrase, "mean") == (1, 3, 4)


@given(words.map("a".__add__))
def test_focus_never_points_at_the_start_or_the_padding(text: str) -> None:
    try:
        phrase = parse_phrase(text)
    except InputError:  # such as letters that ftfy puts together to ones that are not English
        reject()
    _, end = SMALL.clip_ids(phrase.text)
    for focus in ("root", "last", "mean"):
        indices = SMALL.focus_indices(phrase, focus)
        assert indices
        assert all(1 <= index < end for index in indices)


@pytest.mark.parametrize("document", ["", "{}", "no json", '{"model": 3}'])
def test_a_damaged_tokenizer_is_refused(document: str) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer(document, LENGTH)


def test_a_tokenizer_without_clips_tokens_is_refused() -> None:
    foreign = build_tokenizer_json({**VOCABULARY, "x": 1}, MERGES).replace("startoftext", "s")
    with pytest.raises(InputError, match="startoftext"):
        Tokenizer(foreign, LENGTH)


@functools.cache
def _clip() -> tuple[Tokenizer, dict[str, int], tuple[tuple[str, str], ...]]:
    """CLIP's own vocabulary, from the file open_clip ships."""
    from open_clip.tokenizer import default_bpe

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    merges = tuple((a, b) for a, b in (line.split() for line in lines[1 : 49152 - 256 - 2 + 1]))
    vocabulary = _vocabulary(merges)
    return Tokenizer(build_tokenizer_json(vocabulary, merges), 77), vocabulary, merges


@functools.cache
def _open_clip() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@functools.cache
def _transformers() -> Any:
    from transformers import CLIPTokenizerFast

    _, vocabulary, merges = _clip()
    return CLIPTokenizerFast(vocab=vocabulary, merges=list(merges))


@pytest.mark.needs_torch
@pytest.mark.parametrize("text", PHRASES)
def test_clip_ids_are_those_of_open_clip(text: str) -> None:
    theirs = _open_clip()([text])[0].numpy()
    ids, end = _clip()[0].clip_ids(text)
    np.testing.assert_array_equal(ids, theirs)
    assert end == theirs.argmax()


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    "text",
    [
        "the man\u2019s \u201cred\u201d mug \u2013 left",
        "salt &amp; pepper &amp;lt;3",
        "a &lt;b&gt; mug &quot;x&quot;",
        "the manâ€™s cafÃ©",
        "cafe\u0301 cr\u00e8me fl\u00fbte",
        "\uff32\uff45\uff44 mug \uff12",
        "ﬁsh and ﬂower",
        "red\x00\x1c mug\x7f \x1b[31m",
        "left\u00a0mug\u2028right\r\n one",
        "33",
    ],
)
def test_a_phrase_has_the_ids_that_open_clip_gives_the_text_as_written(text: str) -> None:
    theirs = _open_clip()([text])[0].numpy()
    np.testing.assert_array_equal(_clip()[0].clip_ids(parse_phrase(text).text)[0], theirs)


@pytest.mark.needs_torch
@given(st.text(st.sampled_from("aé\u2019\u201c&;#39lt \x00\x1c\r\nÃ©â€™ﬁＡ"), max_size=20).map("x".__add__))
def test_any_cleaned_phrase_has_the_ids_of_open_clip(text: str) -> None:
    theirs = _open_clip()([text])[0].numpy()
    np.testing.assert_array_equal(_clip()[0].clip_ids(parse_phrase(text).text)[0], theirs)


@pytest.mark.needs_torch
@pytest.mark.parametrize("text", PHRASES)
def test_diffusion_ids_are_those_of_transformers(text: str) -> None:
    theirs = _transformers()(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
    np.testing.assert_array_equal(_clip()[0].diffusion_ids(text), theirs)


@pytest.mark.needs_torch
@given(st.text(string.ascii_letters + string.digits + " '.,-!?()/:", max_size=60))
def test_any_plain_english_text_has_the_ids_of_both(text: str) -> None:
    tokenizer, _, _ = _clip()
    np.testing.assert_array_equal(tokenizer.clip_ids(text)[0], _open_clip()([text])[0].numpy())
    theirs = _transformers()(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
    np.testing.assert_array_equal(tokenizer.diffusion_ids(text), theirs)


def test_a_token_beyond_any_vocabulary_is_refused() -> None:
    for token in (START, "a</w>"):
        document = json.loads(build_tokenizer_json(VOCABULARY, MERGES))
        document["model"]["vocab"][token] = 1 << 31  # written here: the library would count up to it
        with pytest.raises(InputError, match=r"tokenizer\.json .*; export the bundle again"):
            Tokenizer(json.dumps(document), LENGTH)


@pytest.mark.slow
def test_any_tokenizer_is_used_or_refused() -> None:
    def read(content: bytes) -> None:
        tokenizer = Tokenizer(content.decode("utf-8", "replace"), LENGTH)
        tokenizer.clip_ids("left guy, 33")

    sample = build_tokenizer_json(_vocabulary(MERGES), MERGES).encode()
    assert fuzz(read, [sample], seed=6, allowed=InputError).refused
