"""The full vocabulary gives every text the ids that CLIP's own tokenizers give it.

Left out on purpose, because open_clip changes the text itself before it is split: what ftfy repairs (curly
quotes, ligatures, control characters), HTML entities, and a Greek sigma that ends an upper-case word, which
Python writes otherwise than the tokenizers library and transformers do.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed: pip install '.[export]'")

from open_clip.tokenizer import SimpleTokenizer, basic_clean
from transformers import CLIPTokenizer

from refdiff.errors import InputError
from refdiff.models.stacks import VOCABULARY, check_vocabulary, clip_tokenizer_json
from refdiff.runtime.tokenizer import END, START, Tokenizer

pytestmark = pytest.mark.needs_torch

LENGTH = 77
TEXTS = (
    "",
    " ",
    "'",
    "left guy",
    "A man's LEFT hand, on the 2nd floor!",
    "It'S you'll 'tis don't can't we've he'd I'm they're",
    "player 12 and number 4077, 3.14 or 1,000,000",
    "x_y-z/3 #1 @ {a} [b] \\ | ^ ~ ` $5 50% (c)* + = ; : ? ...!!",
    "café Ünïcödé Straße naïve coöperate İstanbul ŁÓDŹ",
    "cafe\u0301 a\u030angstrom",
    "🙂👍🏽 the 🍕 on the 🟥 plate 👩\u200d🍳",
    "日本語 中文字 한국어 Привет МИР ΚΑΛΗΜΕΡΑ ½ ² ①",
    "a  lot   of \t white\n\nspace ",
    "antidisestablishmentarianism xqzjwv supercalifragilisticexpialidocious",
    "mug " * 90,
    "a" * 300,
)


@functools.cache
def ours() -> Tokenizer:
    return Tokenizer(clip_tokenizer_json(), LENGTH)


@functools.cache
def open_clips() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=LENGTH)


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Made of open_clip's vocabulary, so that it owes nothing to the code under test."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    renamed = {"<start_of_text>": START, "<end_of_text>": END}
    tokens = {renamed.get(token, token): index for token, index in open_clips().encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(tokens))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in open_clips().bpe_ranks)
    )
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def letters() -> st.SearchStrategy[str]:
    """Characters that every Unicode version in use knows, of many scripts."""
    ranges = [
        (0x20, 0x7E),
        (0xA0, 0x24F),
        (0x300, 0x344),  # U+0345, a mark that folds to a letter, is neither to open_clip: it drops it
        (0x390, 0x52F),
        (0x3041, 0x30FF),
        (0x4E00, 0x9FA5),
        (0xAC00, 0xD7A3),
        (0x1F600, 0x1F64F),
    ]
    kinds = [
        st.characters(min_codepoint=low, max_codepoint=high, exclude_categories=("Cc", "Cn", "Cs"))
        for low, high in ranges
    ]
    return st.one_of(*kinds, st.sampled_from(" \t\n'.-09azAZ"))


def is_left_alone(text: str) -> bool:
    """Whether open_clip reads the text as it stands, but for composed accents; see the module's docstring."""
    return basic_clean(text) == unicodedata.normalize("NFC", text).strip() and text.lower() == "".join(
        map(str.lower, text)
    )


@pytest.mark.parametrize("text", TEXTS)
def test_a_difficult_text_has_open_clips_ids(text: str) -> None:
    assert is_left_alone(text)
    ids, end = ours().clip_ids(text)
    theirs = open_clips()([text])[0]
    assert ids.tolist() == theirs.tolist()
    assert end == theirs.argmax()


@pytest.mark.parametrize("text", TEXTS)
def test_a_difficult_text_is_framed_as_transformers_frames_it(text: str, transformers_tokenizer: Any) -> None:
    theirs = transformers_tokenizer(text, padding="max_length", truncation=True)["input_ids"]
    assert ours().diffusion_ids(text).tolist() == list(theirs)


@settings(max_examples=200)
@given(st.text(letters(), max_size=60).filter(is_left_alone))
def test_any_text_that_open_clip_leaves_alone_has_its_ids(text: str) -> None:
    assert ours().clip_ids(text)[0].tolist() == open_clips()([text])[0].tolist()


def test_the_vocabulary_is_clips_in_size_and_order() -> None:
    model = json.loads(clip_tokenizer_json())["model"]
    assert len(model["vocab"]) == VOCABULARY == 49_408
    assert len(model["merges"]) == 48_894
    assert sorted(model["vocab"].values()) == list(range(VOCABULARY))
    assert (model["vocab"][START], model["vocab"][END]) == (49_406, 49_407)
    theirs = open_clips().encoder
    assert all(theirs[token] == index for token, index in model["vocab"].items() if token not in (START, END))


def test_the_tokenizer_is_the_same_text_every_time() -> None:
    assert clip_tokenizer_json() == clip_tokenizer_json()


def test_towers_of_clips_vocabulary_pass() -> None:
    check_vocabulary()
    check_vocabulary(49_408, 49_408)


def test_a_tower_of_another_vocabulary_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"49409 rows .* expected 49408"):
        check_vocabulary(49_408, 49_409)
