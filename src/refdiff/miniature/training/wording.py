"""Phrases as both text towers are fed them; every distinct phrase is tokenised once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.miniature.architecture import MINIATURE
from refdiff.runtime.phrase import direction, read_phrase
from refdiff.runtime.places import Direction
from refdiff.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Wording:
    """One phrase, encoded."""

    diffusion_ids: NDArray[np.int32]
    """[77] of the phrase + ", " (METHOD §4.3)."""
    root_index: int
    last_index: int
    clip_ids: NDArray[np.int32]
    """[77]."""
    clip_end: int
    root: str
    direction: Direction


class Wordings:
    """Encodes phrases and remembers them."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer(tokenizer_json, MINIATURE.context_length)
        self._known: dict[str, Wording] = {}

    def __getitem__(self, text: str) -> Wording:
        if text not in self._known:
            self._known[text] = self._encode(text)
        return self._known[text]

    def empty_ids(self) -> NDArray[np.int32]:
        """[77] of the unconditional prompt."""
        return self._tokenizer.diffusion_ids("")

    def _encode(self, text: str) -> Wording:
        phrase = read_phrase(text, word_boundaries=True)
        ids, end = self._tokenizer.clip_ids(text)
        return Wording(
            diffusion_ids=self._tokenizer.diffusion_ids(text + ", "),
            root_index=self._tokenizer.focus_indices(phrase, "root")[0],
            last_index=self._tokenizer.focus_indices(phrase, "last")[0],
            clip_ids=ids,
            clip_end=end,
            root=phrase.root,
            direction=direction(text, word_boundaries=True),
        )
