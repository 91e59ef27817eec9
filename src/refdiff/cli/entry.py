"""The command's entry: every way a command can end, as an exit code and at most one line."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, cast

import typer

from refdiff.cli import (  # noqa: F401 - their verbs join the app
    build,
    calibrate,
    check,
    convert,
    eval,
    export,
    precision,
    profile,
    segment,
    verbs,
)
from refdiff.cli.app import app, print_error
from refdiff.errors import RefdiffError

MISUSE, INTERRUPTED = 2, 130

_USAGE_ERRORS = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""click's UsageError, which newer typers carry a copy of and do not name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        with _terminable():
            code = int(app(given, prog_name="refdiff", standalone_mode=False) or 0)
    except RefdiffError as error:
        print_error(error, as_json=as_json, code=error.exit_code)
        return error.exit_code
    except _USAGE_ERRORS as error:
        print_error(error, as_json=as_json, code=MISUSE)
        return MISUSE
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # newer typers end with it of themselves after Ctrl-C, and say nothing
        print_error("interrupted; nothing is left half-written", as_json=as_json, code=INTERRUPTED)
    return code


@contextmanager
def _terminable() -> Iterator[None]:
    """Unwind the command on SIGTERM as on Ctrl-C, so that it too leaves nothing half-written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
