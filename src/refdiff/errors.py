"""Every error that refdiff raises on purpose, as one tree.

The class states who can fix it, and so the exit code of the command:

    RefdiffError
    ├── InputError              2   wrong usage or unusable input: an image, a phrase, an option
    │   └── BundleError         2   a bundle that is missing, damaged or newer, or not a bundle
    ├── GateError               1   the result was computed and is outside its tolerance
    ├── MissingDependencyError  3   a package, driver, device or network is missing
    ├── EngineError             3   an engine cannot run here
    └── SourceError             3   a camera, stream or video cannot be opened
        └── SourceLostError     1   it was opened, and is lost for good
"""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""Control characters but tab and line feed, line separators, changes of direction, lone surrogates."""


def printable(text: str) -> str:
    """Return a text with control characters escaped, so that foreign text cannot command a terminal."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class RefdiffError(Exception):
    """Base of all errors raised on purpose; its text is one line for a person."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the text, printable whatever file or host it quotes."""
        return printable(super().__str__())


class InputError(RefdiffError):
    """An input that cannot be used; the message says what was got, expected, and what to do."""


class BundleError(InputError):
    """A bundle is missing, half-written, damaged, of a newer format, or escapes its folder."""


class GateError(RefdiffError):
    """The result was computed and is outside its committed tolerance."""

    exit_code = 1


class MissingDependencyError(RefdiffError):
    """A package, driver or device that this command needs is not here; the text names the cure."""

    exit_code = 3


class EngineError(RefdiffError):
    """An engine or session cannot be created or run on this machine."""

    exit_code = 3


class SourceError(RefdiffError):
    """A camera, stream or video cannot be opened; the text names the cause and the cure."""

    exit_code = 3


class SourceLostError(SourceError):
    """A source delivered frames, and then could not be reached again."""

    exit_code = 1
