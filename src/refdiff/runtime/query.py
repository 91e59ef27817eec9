"""Parse phrases for a segmenter, and refuse those that cannot be used (METHOD §3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from refdiff.contracts.options import Options
from refdiff.errors import InputError
from refdiff.runtime.observer import NullObserver, Observer, observed
from refdiff.runtime.phrase import Phrase, parse_phrase
from refdiff.runtime.tokenizer import Tokenizer


class QueryParser:
    """Parses phrases as the options say, and checks that no text encoder would cut them off.

    Args:
        options: of the segmenter.
        tokenizer: of the bundle.
        observer: notified of the stage "reading".
    """

    def __init__(self, options: Options, tokenizer: Tokenizer, observer: Observer | None = None) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._observer = observer or NullObserver()

    @observed("reading")
    def parse(self, phrase: str, focus: str | None = None) -> Phrase:
        """Parse a phrase; `focus` is its head word, where the caller knows it better than the parser.

        Raises:
            InputError: it cannot be used.
        """
        boundaries, reader = self._options.crops.word_boundaries, self._options.reader
        query = parse_phrase(phrase, focus=focus, word_boundaries=boundaries, reader=reader)
        self._tokenizer.check_length(query.text)
        return query

    def parse_all(self, phrases: Sequence[str]) -> list[Phrase]:
        """Parse phrases in order.

        Raises:
            InputError: the first phrase that cannot be used, and why.
        """
        queries: list[Phrase] = []
        for number, phrase in enumerate(phrases, start=1):
            try:
                queries.append(self.parse(phrase))
            except InputError as error:  # noqa: PERF203 - the number names the one that fails
                raise InputError(f"phrase {number} of {len(phrases)}, {phrase!r}: {error}") from error
        return queries


def list_phrases(phrases: str | Iterable[str]) -> list[str]:
    """Return the phrases as a list; a text alone is one phrase, not its letters.

    Raises:
        InputError: neither a text nor several.
    """
    if isinstance(phrases, str):
        return [phrases]
    if not isinstance(phrases, Iterable):
        raise InputError(
            f"got phrases of type {type(phrases).__name__}, expected texts; pass a list of phrases"
        )
    return list(phrases)
