"""Run refdiff's command line as on another system: `python tests/support/other_system.py SYSTEM ARGUMENT…`.

SYSTEM is win32 or darwin. A `;` among the arguments separates commands, which run until one fails. What
that system lacks is taken away from this one (modules, functions, signals), and Windows's rules for open
files hold: nothing deletes or renames one, and folders are not opened. The libraries are imported before,
as they are.
"""

import contextlib
import errno
import fcntl
import importlib
import importlib.abc
import itertools
import os
import pkgutil
import signal
import sys
import sysconfig
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

LIBRARIES = (
    *("concurrent.futures", "ctypes", "logging.handlers", "multiprocessing", "shutil", "subprocess"),
    *("tempfile", "urllib.request", "zipfile", "ftfy", "numpy", "PIL.Image", "rich.console", "tokenizers"),
    *("typer", "onnxruntime", "onnx", "onnx_ir"),
)
ROOMS = ("batch", "cli", "contracts", "data", "diagnostics", "engines", "reports", "runtime")
"""What a device uses; the other rooms need torch."""

MISSING_MODULES = {
    "win32": ("fcntl", "grp", "pty", "pwd", "readline", "resource", "termios", "tty"),
    "darwin": ("msvcrt",),
}
MISSING_NAMES = {
    "win32": {
        os: ("O_NONBLOCK", "fork", "geteuid", "getpgid", "getuid", "killpg", "mkfifo", "sysconf"),
        signal: ("SIGHUP", "SIGKILL", "SIGPIPE"),
    },
    "darwin": {},
}
LINUX_NAMES = {os: ("sched_getaffinity", "sched_setaffinity"), signal: ()}
"""Missing on both."""


class Blocker(importlib.abc.MetaPathFinder):
    """Refuses modules."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def open_files() -> set[str]:
    """Paths that this process has open."""
    folder = "/proc/self/fd"
    found = set()
    for name in os.listdir(folder):  # noqa: PTH208 - Path is what is under test
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"{folder}/{name}"))  # noqa: PTH115
    return found


def refusing_open_files(call: Callable[..., Any]) -> Callable[..., Any]:
    def checked(path: Any, *others: Any, **options: Any) -> Any:
        if os.path.realpath(path) in open_files():
            raise PermissionError(errno.EACCES, "the file is used by another process", os.fspath(path))
        return call(path, *others, **options)

    return checked


def open_like_windows(call: Callable[..., int]) -> Callable[..., int]:
    def checked(path: Any, flags: int, *others: Any, **options: Any) -> int:
        if os.path.isdir(path) and not options:  # noqa: PTH112
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return call(path, flags, *others, **options)

    return checked


def sync_like_windows(handle: int) -> None:
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")


def locking(handle: int, _mode: int, _bytes: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


def become(system: str) -> None:
    """Take away what the system lacks."""
    for name in LIBRARIES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    sysconfig.get_config_vars()  # it reads a file that is named after the system
    for owner, names in (*MISSING_NAMES[system].items(), *LINUX_NAMES.items()):
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
    for name in MISSING_MODULES[system]:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Blocker(MISSING_MODULES[system]))
    if system == "win32":
        sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)  # type: ignore[assignment]
        os.open, os.fsync = open_like_windows(os.open), sync_like_windows
        os.unlink, os.remove = refusing_open_files(os.unlink), refusing_open_files(os.remove)
        os.rename, os.replace = refusing_open_files(os.rename), refusing_open_files(os.replace)
    sys.platform = system


def import_rooms() -> None:
    """Import every module of the device's rooms; what they need beyond the lean packages may be missing."""
    for room in ROOMS:
        package = importlib.import_module(f"refdiff.{room}")
        for each in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}."):
            with contextlib.suppress(_NotInstalledError):
                _import(each.name)


class _NotInstalledError(Exception):
    """A module needs a package that is not installed."""


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in MISSING_MODULES["win32"]:
            raise
        raise _NotInstalledError from error


if __name__ == "__main__":
    become(sys.argv[1])
    import_rooms()
    from refdiff.cli import main

    code = 0
    for is_end, words in itertools.groupby(sys.argv[2:], lambda word: word == ";"):
        if not is_end and code == 0:
            code = main(list(words))
    sys.exit(code)
