"""A command run as a child, with its time and its memory's high-water marks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.05
_FIELDS = ("VmHWM", "RssAnon")


@dataclass(frozen=True)
class Watched:
    """Time and memory that a finished command used."""

    seconds: float
    peak_rss_bytes: int
    """Everything resident, file-backed pages included: the kernel's own high-water mark."""
    peak_private_bytes: int
    """Anonymous memory only, sampled; pages of mapped files can be dropped at any time."""
    stdout: str
    finished: bool = True
    """False: the command was ended at its time limit; the peaks are those up to then."""


def run_watched(command: Sequence[str], *, limit_s: float = float("inf")) -> Watched:
    """Run a command to its end or to a time limit; its stderr goes to ours.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    started = time.perf_counter()
    peaks, finished = dict.fromkeys(_FIELDS, 0), True
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603 - our own commands
        while finished and child.poll() is None:
            for field, value in _memory(child.pid).items():
                peaks[field] = max(peaks[field], value)
            time.sleep(_EVERY_S)
            finished = time.perf_counter() - started <= limit_s
        if not finished:
            child.kill()
        stdout = child.stdout.read() if child.stdout else ""
    if finished and child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, stdout)
    return Watched(
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peaks["VmHWM"],
        peak_private_bytes=peaks["RssAnon"],
        stdout=stdout,
        finished=finished,
    )


def _memory(process: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:  # it ended meanwhile
        return {}
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {field: int(values[field].split()[0]) * 1024 for field in _FIELDS if field in values}
