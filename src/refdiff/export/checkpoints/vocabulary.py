"""CLIP's full byte-pair encoding, which both text encoders of a real stack are fed.

In: the vocabulary file that ships with open_clip. Out: the `tokenizers` JSON a bundle stores.
"""

from __future__ import annotations

from open_clip.tokenizer import SimpleTokenizer

from refdiff.errors import InputError
from refdiff.runtime.tokenizer import END, START, build_tokenizer_json

VOCABULARY = 49_408
"""Tokens: 256 bytes, 256 bytes that end a word, 48,894 merges, start and end. Source: openai/CLIP."""


def clip_tokenizer_json() -> str:
    """The tokenizer as a bundle stores it; the same text every time."""
    theirs = SimpleTokenizer()
    ranks: dict[tuple[str, str], int] = theirs.bpe_ranks
    letters = list(theirs.byte_encoder.values())
    merges = sorted(ranks, key=ranks.__getitem__)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    return build_tokenizer_json({token: index for index, token in enumerate(tokens)}, merges)


def check_vocabulary(*rows: int) -> None:
    """Refuse text towers that were trained with another tokenizer.

    Args:
        rows: of each tower's token table.

    Raises:
        InputError: a table has not one row per token of CLIP's vocabulary.
    """
    for found in rows:
        if found != VOCABULARY:
            raise InputError(
                f"got a text tower with {found} rows in its token table, expected {VOCABULARY}, the tokens "
                "of CLIP's vocabulary; use a checkpoint trained with CLIP's tokenizer"
            )
