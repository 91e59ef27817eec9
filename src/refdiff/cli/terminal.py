"""The terminal: the answer on stdout, everything else on stderr, and what happens where a stream fails.

rich costs more than parsing does, so it is imported when something is printed with it and not before.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import typer

from refdiff.contracts.progress import Progress, Step, silent
from refdiff.errors import printable

if TYPE_CHECKING:
    from rich.console import Console, OverflowMethod

    from refdiff.reports.table import Printable

_LOGGER = logging.getLogger("refdiff")

_LOG_WIDTH = 120
"""Columns of what goes to a file or a pipe, which have no width of their own; COLUMNS overrides it."""

_ERRORS = "refdiff-plain"
_PLAIN = {"×": "x", "–": "-", "…": "...", "≥": ">=", "≤": "<=", "→": "->", "“": '"', "”": '"', "±": "+-"}
"""Characters of our tables -> what a stdout prints whose encoding lacks them."""


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    escaped = (_PLAIN.get(each) or each.encode("ascii", "backslashreplace").decode() for each in lacking)
    return "".join(escaped), error.end


codecs.register_error(_ERRORS, _escape)

_LOG_SECONDS = 10.0
"""Least time between two lines of progress in a log."""


class StreamError(Exception):
    """The answer cannot be written to stdout. Not an OSError: typer ends with 1 at those."""

    def __init__(self, error: OSError | ValueError | None) -> None:
        super().__init__(getattr(error, "strerror", None) or str(error or "it is closed"))
        self.is_broken_pipe = getattr(error, "errno", None) == errno.EPIPE
        """True if the reader is gone, as with `| head`."""


class _Stdout:
    """stdout, which raises `StreamError` where it cannot be written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._stream is None:
            raise StreamError(None)
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            raise StreamError(error) from error

    def flush(self) -> None:
        if self._stream is None:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise StreamError(error) from error


@contextlib.contextmanager
def guarded_stdout() -> Iterator[None]:
    """Turn failures of stdout into `StreamError`, and escape what its encoding lacks.

    After a failure the descriptor is replaced, so that Python's last flush does not complain as well.
    """
    stream = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=_ERRORS)
    try:
        with contextlib.redirect_stdout(_Stdout(stream)):
            yield
            sys.stdout.flush()
    except StreamError:
        if stream is sys.__stdout__ and stream is not None:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


@contextlib.contextmanager
def logging_to_stderr(level: int) -> Iterator[None]:
    """Show the log lines of refdiff from this level on; notes and progress are shown up to WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)6.0f ms %(name)s: %(message)s"))
    before = _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(level)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(before)


@contextlib.contextmanager
def working() -> Iterator[Progress]:
    """Yield a function that shows progress, and keep stdout clean while a verb works.

    On a terminal the line replaces itself, with a bar, the elapsed and the remaining time where the steps are
    counted. In a log lines stay, and those of counted steps come every ten seconds.
    """
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints is not part of the answer
        if not _LOGGER.isEnabledFor(logging.WARNING):
            yield silent
        elif not _is_terminal(sys.stderr):
            yield log_lines(note)
        else:
            with progress_bar(_console(sys.stderr)) as show:
                yield show


def log_lines(write: Progress, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Return a function that writes progress to a log: every line, but counted steps only now and then."""
    last, begin, series = 0.0, 0.0, (-1.0, "")

    def show(line: str) -> None:
        nonlocal last, begin, series
        now = clock()
        if not isinstance(line, Step):
            write(line)
            return
        if series != (line.total, line.unit):
            last, begin, series = now - _LOG_SECONDS, now, (line.total, line.unit)
        if now - last < _LOG_SECONDS and line.done < line.total:
            return
        last, elapsed = now, now - begin
        left = f", about {_duration(elapsed * (line.total / line.done - 1))} left" if line.done else ""
        write(f"{line} ({_duration(elapsed)}{left})" if elapsed >= 1 else line)

    return show


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """Yield a function that shows progress as one line of a terminal, gone when the work is done."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    text = TextColumn(
        "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
    )
    columns = (
        SpinnerColumn(),
        text,
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console, transient=True, expand=True) as bar:
        task, series = bar.add_task("starting", total=None), (-1.0, "")

        def show(line: str) -> None:
            nonlocal series
            if isinstance(line, Step):
                if series != (line.total, line.unit):
                    bar.reset(task, total=line.total)
                    series = (line.total, line.unit)
                bar.update(task, completed=line.done)
            bar.update(task, description=printable(line))

        yield show


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


def note_backend(asked: str, chosen: str, reason: str) -> None:
    """Print on stderr which back-end `--backend auto` chose, and why."""
    if asked == "auto":
        note(f"back-end {chosen}: {reason}")


def note(line: str) -> None:
    """Print one line on stderr, apart from the answer; --quiet suppresses it."""
    if _LOGGER.isEnabledFor(logging.WARNING):
        _print_line(line)


def end(message: str, code: int) -> NoReturn:
    """Print what failed on stderr and end the verb, which has printed its answer, with this exit code."""
    _print_line(f"error: {message}")
    raise typer.Exit(code)


def print_answer(document: Mapping[str, Any], layout: Callable[[], Printable], *, as_json: bool) -> None:
    """Print what a verb answers on stdout: its document, or the same laid out for a reader.

    Args:
        document: JSON-ready.
        layout: makes the table or page; called without --json only.
        as_json: print the document.
    """
    if as_json:
        sys.stdout.write(f"{json.dumps(document, allow_nan=False)}\n")
    else:
        console = _console(sys.stdout)
        # Words are broken on a terminal alone: a script may look for a path in a log.
        overflow: OverflowMethod = "fold" if console.is_terminal else "ignore"
        console.print(layout().to_rich(), overflow=overflow, crop=console.is_terminal)
    sys.stdout.flush()


def print_error(kind: str, text: str, *, as_json: bool, code: int) -> None:
    """Print one line on stderr and, with --json, one document on stdout."""
    line = " ".join(text.split())
    _print_line(f"error: {line}")
    if as_json:
        error = {"kind": kind, "message": line, "exit_code": code}
        sys.stdout.write(f"{json.dumps({'error': error})}\n")
        sys.stdout.flush()


_WORDS = {"error:": "bold red", "warning:": "yellow", "note:": "cyan"}
"""First word of a line on stderr -> its style on a terminal."""


def _print_line(line: str) -> None:
    """Print one line on stderr; on a terminal folded between words. A stderr that fails is not reported."""
    line = printable(line)
    with contextlib.suppress(OSError, ValueError):
        if not _is_terminal(sys.stderr):
            if sys.stderr is not None:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
            return
        from rich.text import Text

        first, blank, rest = line.partition(" ")
        _console(sys.stderr).print(Text.assemble((first, _WORDS.get(first, "")), blank, rest))


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    # markup and emoji off: a phrase or a path may hold brackets and colons.
    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _LOG_WIDTH
    return console
