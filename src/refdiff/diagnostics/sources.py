"""Where facts about a machine come from: files under a root, commands, and package metadata.

In: nothing. Out: `Sources`; tests make their own, with a folder for a root and plain functions.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

TOOL_SECONDS = 5.0
"""Until a command that describes the machine is cut off."""

_SECONDS_TO_DIE = 1.0


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command came to."""

    output: str
    """What it printed on stdout."""
    fault: str | None = None
    """Why that is not to be used: it is not there, hung or failed; None when all is well."""


Run = Callable[[Sequence[str], float], Ran]
"""Command and the seconds it may take -> what it came to; never raises."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Everything that facts are read from."""

    root: Path
    """Of the file system."""
    run: Run
    version: Callable[[str], str | None]
    """Name of a package -> its version, None where it is not installed."""
    requirements: tuple[str, ...]
    """refdiff's own, as its metadata lists them; empty where it was not installed as a package."""
    disk_free: Callable[[Path], int]
    """Of the disk that holds a folder."""
    python: str
    """Version of the interpreter."""
    arch: str
    """Such as "x86_64"."""

    def text(self, path: str) -> str | None:
        """Content of a file under the root, without what C puts at the end; None where it cannot be read."""
        try:
            content = (self.root / path).read_bytes()
        except OSError:
            return None
        return content.decode(errors="replace").strip("\0\n ")

    def tool(self, *command: str) -> Ran:
        """Run a command that should answer at once."""
        return self.run(command, TOOL_SECONDS)


def this_machine() -> Sources:
    """The sources of the machine this runs on."""
    return Sources(
        root=Path("/"),
        run=run_command,
        version=installed_version,
        requirements=_requirements(),
        disk_free=lambda folder: shutil.disk_usage(folder).free,
        python=platform.python_version(),
        arch=platform.machine(),
    )


def run_command(command: Sequence[str], seconds: float) -> Ran:
    """Run a command, in a process group of its own, until it ends or its time is over.

    A Python among the commands imports what this one does, whatever the current folder.
    """
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # noqa: PTH100 - entries may be empty
    try:
        process = subprocess.Popen(  # noqa: S603 - fixed commands, and this Python
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd="/",
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
    except OSError as error:
        return Ran(output="", fault=f"{command[0]} cannot be run ({error.strerror or error})")
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return Ran(output="", fault=f"{Path(command[0]).name} gave no answer within {seconds:g} s")
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        return Ran(output=output, fault=_failure(command, process.returncode, errors or output))
    return Ran(output=output)


def installed_version(package: str) -> str | None:
    """A package's version, without importing it; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> tuple[str, ...]:
    try:
        return tuple(metadata.requires("refdiff") or ())
    except metadata.PackageNotFoundError:
        return ()


def _end(process: subprocess.Popen[str]) -> None:
    """Kill it with its children; one that hangs in the kernel is left to the kernel."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_SECONDS_TO_DIE)


def _failure(command: Sequence[str], code: int, said: str) -> str:
    how = f"ended with {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return f"{Path(command[0]).name} {how}: {last}"
