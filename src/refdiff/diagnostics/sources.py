"""Sources of facts about a machine: files under a root, commands, and package metadata.

Tests replace them by a folder and plain functions.
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
"""Time limit of a command that describes the machine."""

_KILL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Ran:
    """Result of a command."""

    output: str
    """Text on stdout."""
    fault: str | None = None
    """Reason why the output is not valid: the command is missing, hung or failed; None if it succeeded."""


Run = Callable[[Sequence[str], float], Ran]
"""Command, time limit in s -> result; never raises."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """All sources of facts."""

    root: Path
    """Root of the file system."""
    run: Run
    version: Callable[[str], str | None]
    """Name of a package -> its version, None if it is not installed."""
    requirements: tuple[str, ...]
    """refdiff's requirements in its metadata; empty if it was not installed as a package."""
    disk_free: Callable[[Path], int]
    """Folder -> free bytes of its disk."""
    python: str
    """Version of the interpreter."""
    arch: str
    """Architecture, such as "x86_64"."""

    def text(self, path: str) -> str | None:
        """Return a file's text without NUL, space and line end around it; None if it cannot be read."""
        try:
            content = (self.root / path).read_bytes()
        except OSError:
            return None
        return content.decode(errors="replace").strip("\0\n ")

    def tool(self, *command: str) -> Ran:
        """Run a command that should return quickly."""
        return self.run(command, TOOL_SECONDS)


def this_machine() -> Sources:
    """Return the sources of this machine."""
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
    """Run a command in a new process group, until it ends or its time limit is reached.

    A Python command imports from the same paths as this process, independent of the current folder.
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
        _kill(process)
        return Ran(output="", fault=f"{Path(command[0]).name} gave no answer within {seconds:g} s")
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        return Ran(output=output, fault=_failure(command, process.returncode, errors or output))
    return Ran(output=output)


def installed_version(package: str) -> str | None:
    """Return a package's version without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> tuple[str, ...]:
    try:
        return tuple(metadata.requires("refdiff") or ())
    except metadata.PackageNotFoundError:
        return ()


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process with its children; one that hangs in the kernel is not waited for."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_KILL_SECONDS)


def _failure(command: Sequence[str], code: int, said: str) -> str:
    how = f"ended with {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return f"{Path(command[0]).name} {how}: {last}"
