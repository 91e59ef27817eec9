"""What the attacks of `benchmarks.faults` share: commands, here and in forks, and a judge of how they end.

A command survives if it ends with an expected exit code, without a traceback or control characters, with one
line on stderr where it fails, and without touching anything outside its folder. Python's audit events show
what it touches; native code is noticed only by what it leaves.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from refdiff.cli import main
from refdiff.contracts.atomic_io import is_draft

Case = tuple[str, str | None]
"""What was tried, and how it was lost; None if it survived."""

LIMIT_S = 90.0
"""A command that takes longer hangs."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.link": 1, "os.symlink": 1}
"""Audit events that change names -> which of their arguments is the name."""
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
_PIPE_BYTES = 1 << 20
_SET_PIPE_SIZE = 1031
"""F_SETPIPE_SZ of linux/fcntl.h."""
_VOLATILE = frozenset(
    {
        "seconds",
        "pipeline_seconds",
        "encode_ms",
        "segment_ms",
        "resumed",
        "answered",
        "built_on",
        "date",
        "mtime_ns",
    }
)
"""Fields that differ from run to run."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where one class of attacks takes place."""

    folder: Path
    """Its own; everything that is written lies in it."""
    photos: Path
    """Folder of rendered scenes; read only."""
    sample: bool
    """Try a few cases instead of all."""
    rng: random.Random
    phrase: str = "the mug"

    def count(self, full: int, sample: int = 1) -> int:
        """Return the number of cases."""
        return sample if self.sample else full

    @property
    def photo(self) -> Path:
        """One of the scenes."""
        return self.photos / "scene-0.png"

    @property
    def outside(self) -> Path:
        """A folder that hostile files refer to; nothing may read it or write to it."""
        return self.folder / "outside"

    @functools.cached_property
    def answer(self) -> Any:
        """The undisturbed answer to `phrase` on `photo`."""
        ending = call("segment", "mini", self.photo, self.phrase, "--json", "-q")
        return answer_of(ending.out)

    def fresh(self, name: str) -> Path:
        """Return an empty path in the folder, without what an earlier case left there."""
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        return path


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a command ended."""

    code: int
    """-n: killed by signal n."""
    out: str
    err: str
    touched: tuple[str, ...] = ()
    """What it did outside its folder."""


@dataclass
class _Watch:
    """Names that a command changes or reads and should not."""

    inside: Path = Path("/nonexistent")
    forbidden: Path = Path("/nonexistent")
    found: list[str] = field(default_factory=list)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _PROGRAMS:
            self.found.append(f"{event} {arguments[0]!r}")
        elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            self._see(event, arguments[0], changes=bool((arguments[2] or 0) & _WRITING))
        elif event in _CHANGES:
            self._see(event, arguments[_CHANGES[event]], changes=True)

    def _see(self, event: str, name: Any, *, changes: bool) -> None:
        path = os.path.abspath(os.fsdecode(name))  # noqa: PTH100 - a link is not followed
        changes = changes and "/__pycache__/" not in path  # Python's own cache of what it imports
        outside = changes and not path.startswith((f"{self.inside}/", "/dev/null", "/dev/shm/"))  # noqa: S108
        if outside or path.startswith(f"{self.forbidden}/"):
            self.found.append(f"{event} {path}")


_watch: _Watch | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is not None:
        _watch.hear(event, arguments)


sys.addaudithook(_hear)


class _HungError(BaseException):
    """A command took too long."""


def _hung(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _HungError(f"it hung for {LIMIT_S:.0f} s")


def call(*arguments: object, ground: Ground | None = None) -> Ending:
    """Run a command in this process, watched if a ground is given."""
    global _watch
    out, err, watch = io.StringIO(), io.StringIO(), _Watch()
    if ground is not None:
        watch = _Watch(inside=ground.folder, forbidden=ground.outside)
    before = signal.signal(signal.SIGALRM, _hung)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            _watch = watch if ground is not None else None
            code = main([str(each) for each in arguments])
    finally:
        _watch = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return Ending(code=code, out=out.getvalue(), err=err.getvalue(), touched=tuple(watch.found))


@dataclass(frozen=True, kw_only=True)
class Fork:
    """A command in a process of its own, which starts with everything that is imported here."""

    pid: int
    out: int
    err: int

    def end(self) -> Ending:
        """Wait for it, and return how it ended; one that hangs is killed."""
        limit, status = time.monotonic() + LIMIT_S, 0
        while not (done := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > limit:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return Ending(code=-99, out="", err=f"it hung for {LIMIT_S:.0f} s", touched=())
            time.sleep(0.005)
        status = os.waitstatus_to_exitcode(done[1])
        return Ending(code=status, out=_drain(self.out), err=_drain(self.err))

    def kill(self, number: int) -> None:
        """Send a signal; the process may have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _drain(pipe: int) -> str:
    with os.fdopen(pipe, "rb") as stream:
        return stream.read().decode(errors="replace")


def fork(*arguments: object, before: Callable[[], object] = lambda: None, stdout: Path | None = None) -> Fork:
    """Start a command in a fork.

    Args:
        arguments: of the command.
        before: called in the fork first.
        stdout: written instead of a pipe.
    """
    pipes = [os.pipe(), os.pipe()]
    for _, end in pipes:
        fcntl.fcntl(end, _SET_PIPE_SIZE, _PIPE_BYTES)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 98
        try:
            os.dup2(pipes[0][1] if stdout is None else os.open(stdout, os.O_WRONLY), 1)
            os.dup2(pipes[1][1], 2)
            sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)  # type: ignore[misc]
            sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False)  # type: ignore[misc]
            before()
            code = main([str(each) for each in arguments])
            sys.stdout.flush()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(code)
    for _, end in pipes:
        os.close(end)
    return Fork(pid=pid, out=pipes[0][0], err=pipes[1][0])


def die_at(number: int) -> None:
    """Let this process kill itself when it is about to change a name for the n-th time."""
    count = 0

    def hear(event: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _CHANGES or event == "ctypes.dlsym":
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def fault_of(ending: Ending, *, codes: Sequence[int] = (1, 2, 3)) -> str | None:
    """Return how a command was lost, None if it ended as it should.

    Args:
        ending: of the command.
        codes: expected exit codes.
    """
    text = ending.out + ending.err
    errors = [line for line in ending.err.splitlines() if line.startswith("error: ")]
    tests = {
        f"exit code {ending.code}, expected one of {codes}": ending.code not in codes,
        "a traceback": "Traceback" in text,
        "a control character": any(ord(each) < 32 and each not in "\n\r\t" for each in text),
        f"{len(errors)} error lines": ending.code > 0 and len(errors) != 1,
        f"touched {ending.touched[:3]}": bool(ending.touched),
    }
    found = [name for name, failed in tests.items() if failed]
    return f"{'; '.join(found)}: {ending.err.strip()[-300:]}" if found else None


def answer_of(text: str) -> Any:
    """Return what a JSON document says about the mask."""
    document = json.loads(text)
    return {name: document[name] for name in ("matched", "mask", "score", "box_xyxy_px")}


def refused_or_same(ending: Ending, answer: Any) -> str | None:
    """Return how a segmentation was lost: badly ended, or with another answer than the undisturbed one."""
    fault = fault_of(ending, codes=(0, 2, 3))
    if fault is None and ending.code == 0 and answer_of(ending.out) != answer:
        return "another answer, without a word"
    return fault


def drafts_in(folder: Path) -> list[str]:
    """Return the drafts and their locks below a folder."""
    return [
        each.name
        for each in folder.rglob(".*")
        if is_draft(each.name) or is_draft(each.with_suffix(".partial").name)
    ]


def state_of(path: Path) -> Mapping[str, Any] | None:
    """Return the content of a folder: name -> hash, or document without what differs from run to run."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return {each.relative_to(path).as_posix(): _content(each) for each in files if each.name != ".lock"}


def _content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json":
        return _stable(json.loads(data))
    if path.suffix == ".jsonl":
        return [_stable(json.loads(line)) for line in data.splitlines()]
    return "" if path.suffix == ".html" else hashlib.sha256(data).hexdigest()


def _stable(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _stable(value) for name, value in document.items() if name not in _VOLATILE}
    return [_stable(each) for each in document] if isinstance(document, list) else document


def spread(ground: Ground, cases: Sequence[Any], full: int, sample: int) -> Iterator[Any]:
    """Yield a seeded choice of cases, in their order."""
    chosen = ground.rng.sample(range(len(cases)), min(len(cases), ground.count(full, sample)))
    for index in sorted(chosen):
        yield cases[index]
