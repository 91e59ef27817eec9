"""The command's entry: every way a command can end, as an exit code and at most one line."""

from __future__ import annotations

import contextlib
import errno
import functools
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn, cast

import typer
from typer.main import get_command

from refdiff.cli import (  # noqa: F401 - their verbs join the app
    build,
    camera,
    check,
    eval,
    export,
    precision,
    profile,
    ros,
    segment,
    serve,
    verbs,
)
from refdiff.cli.app import app
from refdiff.cli.terminal import StreamError, guarded_stdout, print_error
from refdiff.errors import RefdiffError

MISUSE, MACHINE, BUG, INTERRUPTED = 2, 3, 70, 130
"""Exit codes that do not come from an error's class; 70 is EX_SOFTWARE of sysexits.h."""

_BROKEN_PIPE = 128 + 13
"""Exit code of a program that SIGPIPE ends, as with `| head`."""

_ORDER = (
    *("demo", "segment", "camera", "ros2", "bag", "serve", "triton", "inspect", "doctor", "profile"),
    *("fetch", "export", "convert", "build", "check", "eval", "tune"),
    *("calibrate", "audit", "sensitivity", "bisect"),
)
"""Verbs in the order of the help: first what most people want."""
app.registered_commands.sort(key=lambda each: _ORDER.index(str(each.name)))

_USAGE_ERRORS = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""click's UsageError, which newer typers carry a copy of and do not name."""

_ADVICE = {
    errno.ENOSPC: "free space or choose another place",
    errno.EDQUOT: "free space or choose another place",
    errno.EACCES: "check its permissions or choose another place",
    errno.EPERM: "check its permissions or choose another place",
    errno.EROFS: "choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    given = _expand(list(sys.argv[1:] if arguments is None else arguments))
    try:
        with guarded_stdout(), _terminable():
            code = int(
                _command(tuple(app.registered_commands))(given, prog_name="refdiff", standalone_mode=False)
                or 0
            )
    except BaseException as error:
        return _end(error, given)
    return _end(KeyboardInterrupt(), given) if code == INTERRUPTED else code  # newer typers return it


@functools.lru_cache(maxsize=1)
def _command(_verbs: tuple[object, ...]) -> Callable[..., Any]:
    """Return the command of these verbs; it is built from the signatures of all, once in a process."""
    return get_command(app)


def _expand(given: list[str]) -> list[str]:
    """Turn `refdiff`, `refdiff help [VERB]` and `refdiff version` into the options that answer them."""
    if not given or given[0] == "help":
        return [*given[1:2], "--help"]
    return ["--version"] if given == ["version"] else given


def _end(error: BaseException, given: Sequence[str]) -> int:
    code, text = next(ending(error) for kinds, ending in _ENDINGS if isinstance(error, kinds))
    if code == BUG and "--debug" in given:
        traceback.print_exception(error)
    if text:
        kind = "Interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__.strip("_")
        with contextlib.suppress(StreamError), guarded_stdout():
            print_error(kind, text, as_json="--json" in given, code=code)
    return code


def _stream(error: BaseException) -> tuple[int, str]:
    broken = isinstance(error, StreamError) and error.is_broken_pipe
    return (_BROKEN_PIPE, "") if broken else (MACHINE, f"cannot write to stdout: {error}")


def _exit(error: BaseException) -> tuple[int, str]:
    signalled = isinstance(error, _Terminated)
    return int(error.code or 0) if isinstance(error, SystemExit) else 0, str(error) if signalled else ""


def _refused(error: BaseException) -> tuple[int, str]:
    """Describe what the system refused and no room expected."""
    if isinstance(error, MemoryError):
        return MACHINE, "not enough memory; close other programs or use a smaller image"
    if not isinstance(error, OSError):
        return MACHINE, f"the installation is incomplete: {error}; install refdiff again"
    where = "" if error.filename is None else f"{error.filename}: "
    advice = _ADVICE.get(error.errno or 0, "")
    what = error.strerror or str(error) or type(error).__name__
    return MACHINE, f"{where}{what}{advice and '; '}{advice}"


def _bug(error: BaseException) -> tuple[int, str]:
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return MACHINE, "the system allows no more threads; end other programs or raise the limit (ulimit -u)"
    return BUG, (
        f"{type(error).__name__}: {str(error).strip() or 'no message'}; this is a bug in refdiff: run again "
        "with --debug for the traceback, and report it"
    )


def _usage(error: BaseException) -> tuple[int, str]:
    describe = getattr(error, "format_message", None)  # click's errors say more this way than through str()
    return MISUSE, str(describe() if describe else error)


def _interrupted(_error: BaseException) -> tuple[int, str]:
    return INTERRUPTED, "interrupted; nothing is left half-written"


class _Terminated(SystemExit):
    """SIGTERM or SIGHUP came."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self._name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"ended by {self._name}; nothing is left half-written"


_Ending = Callable[[BaseException], tuple[int, str]]
_ENDINGS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], _Ending], ...] = (
    (RefdiffError, lambda error: (cast("RefdiffError", error).exit_code, str(error))),
    (_USAGE_ERRORS, _usage),
    ((KeyboardInterrupt, typer.Abort), _interrupted),
    (StreamError, _stream),
    (SystemExit, _exit),
    ((OSError, MemoryError, ImportError), _refused),
    (BaseException, _bug),
)
"""Kinds of errors -> exit code and line; the first that fits counts. No line means nothing is printed."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Unwind the command on SIGTERM and SIGHUP as on Ctrl-C, so that these too leave nothing half-written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names]
    before = {each: signal.getsignal(each) for each in numbers}
    heard = [each for each in numbers if before[each] != signal.SIG_IGN]  # nohup ignores SIGHUP
    for number in heard:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated(number)
