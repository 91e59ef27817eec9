"""Where things go: one JSON document or one table on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from refdiff.reports import Printable

Tell = Callable[[str], None]

_LOG_WIDTH = 120
"""Columns of a table that goes to a file or a pipe, which have no width of their own."""


@contextlib.contextmanager
def working() -> Iterator[Tell]:
    """While a verb works: hands out its progress line, and keeps stdout clean.

    On a terminal the line replaces itself; in a log every line stays.
    """
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints is not part of the answer
        if not sys.stderr.isatty():
            yield note
            return
        from rich.console import Console  # costs more than parsing does, and --help needs none of it

        with Console(stderr=True).status("starting") as status:
            yield lambda line: status.update(line.replace("[", r"\["))


def note_backend(asked: str, chosen: str, reason: str) -> None:
    """What `--backend auto` came to."""
    if asked == "auto":
        note(f"back-end {chosen}: {reason}")


def note(line: str) -> None:
    """One line beside the answer."""
    typer.echo(line, err=True)


def print_answer(document: dict[str, Any], layout: Callable[[], Printable], *, as_json: bool) -> None:
    """Print what a verb answers on stdout: its document, or the same laid out for a reader.

    Args:
        document: JSON-ready.
        layout: makes the table or page; called without --json only.
        as_json: print the document.
    """
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
        return
    from rich.console import Console  # costs more than parsing does, and --help needs none of it

    # markup and emoji off: a phrase or a path may hold brackets and colons.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=_LOG_WIDTH)
    console.print(layout().to_rich())


def print_error(error: Exception | str, *, as_json: bool, code: int) -> None:
    """One line on stderr, and with --json the one document on stdout."""
    describe = getattr(error, "format_message", None)  # click's errors say more this way than through str()
    text = " ".join(str(describe() if describe else error).split())
    if as_json:
        kind = "Interrupted" if isinstance(error, str) else type(error).__name__
        typer.echo(json.dumps({"error": {"kind": kind, "message": text, "exit_code": code}}))
    typer.echo(f"error: {text}", err=True)
