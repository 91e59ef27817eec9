"""A tokenizer that knows every letter, and one word of more than one letter: "red"."""

from refdiff.runtime.tokenizer import END, START, Tokenizer, build_tokenizer_json

_LETTERS = tuple(map(chr, range(33, 127)))
_TOKENS = (*_LETTERS, *(letter + "</w>" for letter in _LETTERS), "re", "red</w>", START, END)


def letter_tokenizer(length: int) -> Tokenizer:
    """Return the tokenizer for prompts of this many tokens."""
    merges = (("r", "e"), ("re", "d</w>"))
    return Tokenizer(build_tokenizer_json({token: i for i, token in enumerate(_TOKENS)}, merges), length)
