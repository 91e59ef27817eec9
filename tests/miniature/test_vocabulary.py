"""The cut vocabulary tokenises the miniature's words exactly as CLIP's own does."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def cut():
    from refdiff.miniature.stack import miniature_tokenizer_json
    from refdiff.runtime.tokenizer import Tokenizer

    return Tokenizer(miniature_tokenizer_json(), 77)


def test_every_word_of_the_lexicon_has_clips_own_pieces(cut):
    from open_clip.tokenizer import SimpleTokenizer

    from refdiff.miniature.scenes import LEXICON

    full = SimpleTokenizer()
    for word in LEXICON:
        theirs = [full.decoder[token] for token in full.encode(word)]
        assert [piece.text for piece in cut.pieces(word)] == theirs, word


def test_a_word_outside_the_lexicon_is_still_spelled_out(cut):
    spelled = "".join(piece.text for piece in cut.pieces("zebra")).replace("</w>", "")
    assert spelled == "zebra"


def test_start_and_end_are_the_last_two_tokens():
    from refdiff.miniature.scenes import LEXICON
    from refdiff.miniature.stack import reduce_bpe
    from refdiff.runtime.tokenizer import END, START

    tokens, merges = reduce_bpe(LEXICON)
    assert (tokens[START], tokens[END]) == (len(tokens) - 2, len(tokens) - 1)
    assert len(tokens) == 512 + len(merges) + 2
