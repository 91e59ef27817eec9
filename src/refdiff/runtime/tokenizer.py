"""CLIP's byte-pair encoding for both text encoders, and the token of the head word.

In: text and the `tokenizers` JSON of a bundle. Out: int32 ids [context]. The start token counts as index 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from refdiff.contracts.options import Focus
from refdiff.contracts.spec import Padding
from refdiff.errors import InputError
from refdiff.runtime.head import words_of
from refdiff.runtime.lexicon import DETERMINERS, STOPS
from refdiff.runtime.phrase import Phrase

START = "<|startoftext|>"
END = "<|endoftext|>"

_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Source: openai/CLIP, simple_tokenizer.py, without its special tokens: a phrase has none."""

_TRIAL = "a 2"
"""A text that any tokenizer of CLIP's reads; reading it shows what a damaged one does."""

_NO_CONTENT = STOPS | DETERMINERS

_LARGEST_ID = (1 << 20) - 1
"""Beyond every vocabulary; a tokenizer.json may state any number of 32 bits."""

Ids = NDArray[np.int32]


class Piece(NamedTuple):
    """One token of a text, and its offsets in the text."""

    text: str
    start_char: int
    end_char: int


class Tokenizer:
    """Converts text to token ids.

    Args:
        tokenizer_json: the JSON; its vocabulary may be cut to fewer merges.
        context_length: tokens per prompt, start and end included.

    Raises:
        InputError: the JSON is not a tokenizer, or lacks CLIP's start or end token.
    """

    def __init__(self, tokenizer_json: str, context_length: int) -> None:
        try:
            self._encoder = tokenizers.Tokenizer.from_str(tokenizer_json)
            self._encoder.no_truncation()
            self._encoder.no_padding()
            trial = self._encode(_TRIAL).ids
        except BaseException as error:  # the library raises plain Exception, and a panic that is none
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise InputError(f"tokenizer.json cannot be read ({error}); export the bundle again") from error
        if not trial or max(trial) > _LARGEST_ID:
            raise InputError(
                f"tokenizer.json reads {_TRIAL!r} as {trial}, expected CLIP's tokens; export the bundle again"
            )
        self._limit = context_length - 2
        self._start, self._end = (self._special_id(token) for token in (START, END))

    def _special_id(self, token: str) -> int:
        found = self._encoder.token_to_id(token)
        if found is None or found > _LARGEST_ID:
            raise InputError(f"tokenizer.json has no token {token}, expected CLIP's; export the bundle again")
        return int(found)

    def _encode(self, text: str) -> tokenizers.Encoding:
        return self._encoder.encode(text, add_special_tokens=False)

    def pieces(self, text: str) -> tuple[Piece, ...]:
        """Return the tokens of `text`, without start and end, untruncated."""
        encoding = self._encode(text)
        return tuple(
            Piece(piece, *span) for piece, span in zip(encoding.tokens, encoding.offsets, strict=True)
        )

    def check_length(self, text: str) -> None:
        """Refuse a text that would be truncated.

        Raises:
            InputError: more pieces than fit between start and end.
        """
        got = len(self._encode(text).ids)
        if got > self._limit:
            raise InputError(f"got a phrase of {got} tokens, expected at most {self._limit}; shorten it")

    def diffusion_ids(self, text: str, padding: Padding = "end") -> Ids:
        """Return [context]: start, pieces, end, and padding as the model was trained with.

        Args:
            text: a prompt; truncated where it does not fit.
            padding: the spec's: the end token again (SD 1.x), or token 0 (SD 2.x).
        """
        ids, _ = self._frame(text, padding=self._end if padding == "end" else 0)
        return ids

    def clip_ids(self, text: str) -> tuple[Ids, int]:
        """Return [context]: start, pieces, end, zeros, as CLIP was trained; and the end token's index."""
        return self._frame(text, padding=0)

    def _frame(self, text: str, *, padding: int) -> tuple[Ids, int]:
        pieces = self._encode(text).ids[: self._limit]
        if any(piece > _LARGEST_ID for piece in pieces):
            raise InputError(f"tokenizer.json reads {text!r} as {pieces}; export the bundle again")
        ids = np.full(self._limit + 2, padding, np.int32)
        ids[: len(pieces) + 2] = (self._start, *pieces, self._end)
        return ids, len(pieces) + 1

    def focus_indices(self, phrase: Phrase, focus: Focus) -> tuple[int, ...]:
        """Return the tokens whose columns of the attention are read (METHOD §3).

        Args:
            phrase: a phrase that passed `check_length`.
            focus: "root": the last token of the text up to the head, encoded on its own as released, and no
                later than the text's last token. "last", "mean": the last, or all, of the tokens that carry
                letters or digits.

        Returns:
            Indices that count the start token as 0.
        """
        pieces = self.pieces(phrase.text)[: self._limit]
        if focus == "root" or phrase.focused:
            prefix = len(self._encode(phrase.text[: phrase.root_end]).ids)
            return (max(1, min(prefix, len(pieces))),)
        spans = enumerate((phrase.text[piece.start_char : piece.end_char] for piece in pieces), start=1)
        content = tuple(index for index, span in spans if any(letter.isalnum() for letter in span)) or (1,)
        return content if focus == "mean" else content[-1:]

    def content_indices(self, phrase: Phrase) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of the named thing, and those of the other things of the phrase (METHOD §10.8).

        Both leave out determiners, prepositions and the like. The thing's modifiers count as its own tokens,
        because the text encoder is causal: the head's column carries them.

        Returns:
            Indices that count the start token as 0.
        """
        text, after = phrase.text, phrase.root_end
        starts = [(text.find(other, after), len(other)) for other in phrase.others]
        spans = [(start, start + length) for start, length in starts if start >= 0]
        words = [word for word in words_of(text) if word.text not in _NO_CONTENT]
        own: list[int] = []
        others: list[int] = []
        for index, piece in enumerate(self.pieces(text)[: self._limit], start=1):
            at = piece.start_char
            if any(word.start <= at < word.end for word in words):
                (others if any(start <= at < end for start, end in spans) else own).append(index)
        return tuple(own), tuple(others)


def build_tokenizer_json(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> str:
    """Build CLIP's tokenizer as JSON.

    Args:
        vocab: token -> id, with `START` and `END`, and "</w>" on tokens that end a word.
        merges: pairs, the first to be applied first; may be cut short.

    Returns:
        JSON that `tokenizers` 0.15 and later read; pairs are written the old way, as "a b".
    """
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=dict(vocab),
            merges=list(merges),
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            unk_token=END,
        )
    )
    encoder.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFC(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Lowercase(),
        ]
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    encoder.decoder = tokenizers.decoders.ByteLevel()
    document = json.loads(encoder.to_str())
    document["model"]["merges"] = [" ".join(pair) for pair in merges]
    return json.dumps(document, ensure_ascii=False)
