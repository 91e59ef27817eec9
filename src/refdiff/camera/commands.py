"""Commands that change a run while it runs, one a line, as `refdiff camera` reads them from stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

from refdiff.camera.track import Tracker
from refdiff.errors import InputError, RefdiffError

HELP = (
    ("phrase: TEXT", "follow this instead of all phrases"),
    ("phrase N: TEXT", "follow this instead of the N-th phrase"),
    ("add: TEXT, remove: TEXT", "follow one phrase more or less"),
    ("pause, resume", "run nothing until `resume`"),
    ("variant: NAME", "answer key frames with edge or official"),
    ("key", "answer the next frame"),
    ("status", "print rates and drops"),
    ("quit", "stop"),
)
"""Command -> what it does, for the documentation and the answer to an unknown one."""


def run_command(line: str, tracker: Tracker) -> str:
    """Do what a line says, and return what was done; an empty line does nothing.

    Raises:
        InputError: the command is unknown, or cannot be done; nothing is changed.
    """
    name, _, text = line.strip().partition(":")
    words, text = name.lower().split(), text.strip()
    if not words and not text:
        return ""
    verb, place = (words[0] if words else ""), words[1:]
    if verb == "phrase" and text:
        return _set_phrase(tracker, place, text)
    if place or bool(text) != (verb in _WITH_TEXT) or verb not in _ACTIONS:
        known = "; ".join(command for command, _ in HELP)
        raise InputError(f"got the command {line.strip()!r}, expected one of: {known}")
    return _ACTIONS[verb](tracker, text)


def _set_phrase(tracker: Tracker, place: list[str], text: str) -> str:
    phrases = list(tracker.phrases)
    if not place:
        tracker.set_phrases([text])
        return f"follows {text!r}"
    at = int(place[0]) if len(place) == 1 and place[0].isdecimal() else 0
    if not 1 <= at <= len(phrases):
        raise InputError(f"got phrase {' '.join(place)}, expected a number from 1 to {len(phrases)}")
    phrases[at - 1] = text
    tracker.set_phrases(phrases)
    return f"follows {text!r} as phrase {at}"


def _add(tracker: Tracker, text: str) -> str:
    tracker.set_phrases([*tracker.phrases, text])
    return f"follows {text!r} too"


def _remove(tracker: Tracker, text: str) -> str:
    if text not in tracker.phrases:
        raise InputError(f"got {text!r}, expected a phrase that is followed: {', '.join(tracker.phrases)}")
    tracker.set_phrases([each for each in tracker.phrases if each != text])
    return f"no longer follows {text!r}"


def _pause(tracker: Tracker, _text: str) -> str:
    tracker.pause()
    return "paused"


def _resume(tracker: Tracker, _text: str) -> str:
    tracker.resume()
    return "goes on"


def _use_variant(tracker: Tracker, text: str) -> str:
    tracker.use(replace(tracker.run_options, variant=text.lower()))
    return f"answers key frames with {text.lower()}"


def _ask_key(tracker: Tracker, _text: str) -> str:
    tracker.ask_key()
    return "answers the next frame"


def _status(tracker: Tracker, _text: str) -> str:
    return tracker.status()


def _quit(tracker: Tracker, _text: str) -> str:
    tracker.stop()
    return "stops"


_ACTIONS: dict[str, Callable[[Tracker, str], str]] = {
    "add": _add,
    "remove": _remove,
    "pause": _pause,
    "resume": _resume,
    "variant": _use_variant,
    "key": _ask_key,
    "status": _status,
    "quit": _quit,
}
_WITH_TEXT = frozenset({"add", "remove", "variant"})


def obey(lines: Iterator[str], tracker: Tracker, reply: Callable[[str], None]) -> None:
    """Run each line as a command; what cannot be done is a reply, and the run goes on.

    Args:
        lines: one command each.
        tracker: of the run.
        reply: called with one line for each command.
    """
    for line in lines:
        try:
            said = run_command(line, tracker)
        except RefdiffError as error:
            said = f"error: {error}"
        if said:
            reply(said)


def read_lines(descriptor: int) -> Iterator[str]:
    """Yield the lines of an open file as they come, until it ends.

    It is read without Python's buffers: a thread that waits in one of them keeps the process from ending.
    """
    rest = b""
    while True:
        try:
            read = os.read(descriptor, 4096)
        except OSError:
            return
        *lines, rest = (rest + read).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)
        if not read:
            if rest:
                yield rest.decode("utf-8", "replace")
            return


def stdin_descriptor() -> int | None:
    """Return the descriptor of a stdin that commands can be read from; None if there is none.

    A terminal that this process is in the background of is none: reading from it would stop the process.
    """
    try:
        descriptor = sys.stdin.fileno()
        if os.isatty(descriptor) and os.tcgetpgrp(descriptor) != os.getpgrp():
            return None
    except (AttributeError, OSError, ValueError):
        return None
    return descriptor
