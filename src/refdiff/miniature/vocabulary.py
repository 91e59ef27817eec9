"""CLIP's byte-pair encoding, cut to the merges the miniature's phrases need.

The cut keeps the merge order, so every kept word is tokenised exactly as CLIP tokenises it; any other text
falls back to shorter pieces, down to bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from open_clip.tokenizer import SimpleTokenizer

from refdiff.miniature.scenes import LEXICON
from refdiff.runtime.tokenizer import END, START, build_tokenizer_json

FIRST_MERGES = 128
"""Most frequent merges kept besides the lexicon's, so that words outside it are not all bytes."""


def miniature_tokenizer_json() -> str:
    """The miniature's tokenizer as a bundle stores it."""
    vocabulary, merges = cut_bpe(LEXICON)
    return build_tokenizer_json(vocabulary, merges)


def vocabulary_size() -> int:
    """Tokens of the cut vocabulary, start and end included."""
    return len(cut_bpe(LEXICON)[0])


def cut_bpe(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary and merges, cut.

    Returns:
        token -> id (bytes, bytes that end a word, merges in order, start, end) and the kept merges.
    """
    full = SimpleTokenizer()
    ranks: dict[tuple[str, str], int] = full.bpe_ranks
    kept = {pair for pair, rank in ranks.items() if rank < FIRST_MERGES}
    for word in words:
        kept |= _merges_of(word, ranks)
    merges = sorted(kept, key=ranks.__getitem__)
    single = list(full.byte_encoder.values())
    tokens = [*single, *(f"{byte}</w>" for byte in single), *("".join(pair) for pair in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _merges_of(word: str, ranks: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """The merges that CLIP's encoder applies to one plain word."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    used: set[tuple[str, str]] = set()
    while len(pieces) > 1:
        pair = min(pairwise(pieces), key=lambda p: ranks.get(p, len(ranks)))
        if pair not in ranks:
            break
        used.add(pair)
        merged, i = [], 0
        while i < len(pieces):
            joined = tuple(pieces[i : i + 2]) == pair
            merged.append("".join(pair) if joined else pieces[i])
            i += 2 if joined else 1
        pieces = merged
    return used
