"""A reader process as its parent sees it: start, messages, memory, end.

The process is a fresh interpreter, never a fork of one that holds engines. What it sends is parsed here;
`reader_source.py` decides what follows from it.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from refdiff.camera.sources.address import redact
from refdiff.camera.sources.fault import SourceFault, explain_exit
from refdiff.camera.sources.reader import LENGTH
from refdiff.camera.sources.ring import SLOTS, Ring, attach_ring

_RECEIVED = 65_536
_DESCRIPTORS = 8
_END_S = 2.0
"""A killed process that has not ended by then waits in the kernel, for a driver; it is left behind."""

_LONGEST_LOG = 1_000_000
"""Bytes of stderr that are kept, on the disk of temporary files."""

_PROGRAM = "import sys; sys.path[:] = {path!r}; from refdiff.camera.sources.reader import main; main()"


class Reader(Protocol):
    """What runs a reader, and the parent's end of its socket."""

    @property
    def connection(self) -> socket.socket:
        """The parent's end."""
        ...

    @property
    def pid(self) -> int | None:
        """The number of its process, if it has one."""
        ...

    def kill(self) -> None:
        """End it at once, also in the middle of a read."""
        ...

    def explain(self) -> SourceFault:
        """Return why it ended without a word."""
        ...

    def last_words(self) -> str:
        """Return the last lines that it wrote to stderr, without credentials."""
        ...

    def trim(self) -> None:
        """Keep what it writes to stderr from filling the disk."""
        ...


Launch = Callable[[Mapping[str, Any]], Reader]
"""Starts a reader with a request; see `reader.py`."""


class ReaderProcess:
    """A child process that runs `reader.py`.

    Args:
        request: what it reads; see `reader.py`.

    Raises:
        OSError: the system refuses another process.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._secrets = tuple(request["secrets"])
        self._killed = False
        self._said = _appended_file()
        self.connection, theirs = socket.socketpair()
        path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109 - as the interpreter does
        command = [sys.executable, "-I", "-c", _PROGRAM.format(path=path), str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # so that its commands can be ended with it
            )
        except OSError:
            self.connection.close()
            self._said.close()
            raise
        finally:
            theirs.close()
        data = json.dumps(request).encode()
        with suppress(OSError):  # it has ended already: `explain` says why
            self.connection.sendall(LENGTH.pack(len(data)) + data)

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return self._process.pid

    def kill(self) -> None:
        """End the process and the commands that it has started; calling it twice is fine."""
        if self._killed:
            return
        self._killed = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self.connection.close()
        self._said.close()

    def explain(self) -> SourceFault:
        """Return why the process ended without a word; its last lines on stderr are part of the reason."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return SourceFault(kind="crashed", reason="the reader process closed its connection")
        return explain_exit(code, self.last_words())

    def last_words(self) -> str:
        """Return the last lines that the process and FFmpeg wrote to stderr, without credentials."""
        size = os.fstat(self._said.fileno()).st_size
        tail = os.pread(self._said.fileno(), 2000, max(0, size - 2000)).decode(errors="replace")
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return redact("; ".join(lines[-3:])[-500:], self._secrets)

    def trim(self) -> None:
        """Drop what the process has written to stderr once it is long."""
        if os.fstat(self._said.fileno()).st_size > _LONGEST_LOG:
            os.ftruncate(self._said.fileno(), 0)


class Inbox:
    """Takes the messages of a reader apart, and maps the memory that it sends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""
        self._descriptors: deque[int] = deque()
        self.rings: dict[int, Ring] = {}
        """Generation -> ring; the last two."""
        self.closed = False
        """Whether the reader's end is closed."""

    def receive(self) -> Iterator[dict[str, Any]]:
        """Yield the messages that have arrived; call it when the connection is readable."""
        try:
            data, ancillary, _, _ = self._connection.recvmsg(
                _RECEIVED, socket.CMSG_LEN(_DESCRIPTORS * array.array("i").itemsize)
            )
        except ConnectionError:
            data, ancillary = b"", []
        self._keep_descriptors(ancillary)
        self.closed = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ring" in message:
                self._attach(*message["ring"])
            else:
                yield message

    def close(self) -> None:
        """Close what has arrived and was not used."""
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self.rings.clear()

    def _keep_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self._descriptors.extend(numbers)

    def _attach(self, generation: int, slot_bytes: int) -> None:
        descriptor = self._descriptors.popleft()
        try:
            self.rings[generation] = attach_ring(descriptor, slot_bytes)
        finally:
            os.close(descriptor)
        while len(self.rings) > 2:
            del self.rings[next(iter(self.rings))]


@dataclass(eq=False)
class Run:
    """One reader, from its start to its end."""

    reader: Reader
    inbox: Inbox
    first: int
    """Frames of the source before it."""
    count: int = 0
    """Frames that it has counted."""
    taken: int = 0
    """Frames that it has handed over."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Frames that it has dropped."""
    held: int = 0
    """Its slots that are not given back yet."""
    description: str = ""
    """What it has opened."""

    @property
    def inside(self) -> int:
        """Frames that it has counted, and neither handed over nor dropped."""
        return self.count - self.taken - self.dropped.total()


@dataclass(frozen=True, eq=False)
class WaitingFrame:
    """A frame in a slot that `read` has not returned yet."""

    run: Run
    ring: Ring
    place: tuple[int, int]
    """Generation and slot."""
    size_yx: tuple[int, int]
    """In px."""
    number: int
    captured_s: float
    wall_s: float
    pts_s: float | None


def release(connection: socket.socket, generation: int, slot: int) -> None:
    """Give a slot back to the reader; nothing happens if the reader has ended."""
    if not 0 <= slot < SLOTS:
        raise ValueError(f"got slot {slot}, expected 0 to {SLOTS - 1}")
    with suppress(OSError):
        connection.send(bytes((generation, slot)))


def _appended_file() -> IO[bytes]:
    """Return a file without a name, to whose end every process writes."""
    import fcntl

    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `kill`
    fcntl.fcntl(file.fileno(), fcntl.F_SETFL, fcntl.fcntl(file.fileno(), fcntl.F_GETFL) | os.O_APPEND)
    return file
