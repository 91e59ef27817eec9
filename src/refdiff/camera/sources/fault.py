"""Why a source gave no frames: the kinds of faults, how each is recognized, and when another try can help."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from refdiff.errors import InputError, MissingDependencyError, RefdiffError, SourceError, SourceLostError

_CURES: Mapping[str, tuple[str, bool]] = {
    # kind: what to do, whether another try at the start can help
    "authentication": ("check the user name and the password in the address", False),
    "not_found": ("check the path, the host name or the number of the device", False),
    "refused": ("check that the sender runs, and its port", True),
    "codec": ("check that the address delivers video, in a format that FFmpeg reads", False),
    "timeout": ("check the address, the network and the camera", True),
    "unreachable": ("check the network and the address", True),
    "unplugged": ("check the cable", True),
    "busy": ("end the other program that uses the camera", True),
    "permission": ("let this user read the device, for example: sudo usermod -aG video $USER", False),
    "closed": ("check the sender", True),
    "stalled": ("check the camera and the network", True),
    "crashed": ("report it with this message if it happens again", True),
    "resources": (
        "the machine is out of threads, processes or memory: end other programs, or raise the limit "
        "(ulimit -u, TasksMax)",
        True,
    ),
    "missing": ("", False),
    "input": ("", False),
    "unknown": ("check the source with another program, such as ffprobe", True),
}

_NAMES = {
    "HTTPUnauthorizedError": "authentication",
    "HTTPForbiddenError": "authentication",
    "HTTPNotFoundError": "not_found",
    "InvalidDataError": "codec",
    "DecoderNotFoundError": "codec",
    "DemuxerNotFoundError": "codec",
    "ProtocolNotFoundError": "codec",
    "PatchWelcomeError": "codec",
    "HTTPClientError": "unknown",
    "HTTPServerError": "unreachable",
    "EOFError": "closed",
    "ExitError": "timeout",
}
"""Class of PyAV's exception -> kind."""

_NUMBERS = {
    errno.ENOENT: "not_found",
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.ENODEV: "unplugged",
    errno.ENXIO: "unplugged",
    errno.EBUSY: "busy",
    errno.EADDRINUSE: "busy",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ECONNRESET: "closed",
    errno.ECONNABORTED: "closed",
    errno.EPIPE: "closed",
    errno.EAGAIN: "resources",
    errno.ENOMEM: "resources",
    errno.EMFILE: "resources",
    errno.ENFILE: "resources",
    errno.ENOSPC: "resources",
}


_EXHAUSTED = ("can't start new thread", "Resource temporarily unavailable", "Cannot allocate memory")
"""Last words of a process that the system refused a thread or memory."""


@dataclass(frozen=True, kw_only=True)
class SourceFault:
    """Why a reader gave up."""

    kind: str
    """A key of the table of cures; one that is not there counts as `unknown`."""
    reason: str
    """One line without credentials."""

    @property
    def hopeless(self) -> bool:
        """Whether trying again cannot help a source that has never been opened."""
        return not _CURES.get(self.kind, _CURES["unknown"])[1]

    def error(self, name: str, *, opened: bool, tries: int) -> RefdiffError:
        """Return the error of a source that is given up.

        Args:
            name: the source's, without credentials.
            opened: whether it ever delivered a frame.
            tries: how often it was tried since.
        """
        cure = _CURES.get(self.kind, _CURES["unknown"])[0]
        ending = f"; {cure}" if cure else ""
        if self.kind == "input":
            return InputError(f"source {name}: {self.reason}")
        if self.kind == "missing":
            return MissingDependencyError(f"source {name}: {self.reason}")
        count = f" (tried {tries} times)" if tries > 1 else ""
        if opened:
            return SourceLostError(f"source {name} is lost: {self.reason}{count}{ending}")
        return SourceError(f"source {name} cannot be opened: {self.reason}{count}{ending}")


class FaultError(Exception):
    """A fault that the code of a reader has recognized."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.fault = SourceFault(kind=kind, reason=reason)


def explain(error: Exception, location: str) -> SourceFault:
    """Return the fault that an exception of a reader stands for; its reason may still hold credentials.

    Args:
        error: of PyAV, the system or a reader.
        location: the address that was opened.
    """
    if isinstance(error, FaultError):
        return error.fault
    if isinstance(error, InputError):
        return SourceFault(kind="input", reason=str(error))
    if isinstance(error, MissingDependencyError):
        return SourceFault(kind="missing", reason=str(error))
    if isinstance(error, MemoryError):
        return SourceFault(kind="resources", reason="no memory")
    number = getattr(error, "errno", None)
    if number == errno.EIO and (host := _unresolved(location)):
        return SourceFault(kind="not_found", reason=f"the host name {host} cannot be resolved")
    kind = _kind(error, number)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if kind == "authentication" and "://" in location:
        text = "the user name or the password was not accepted"
    return SourceFault(kind=kind, reason=" ".join(str(text).split()))


def explain_exit(code: int, last_lines: str) -> SourceFault:
    """Return the fault of a reader process that ended without a word.

    Args:
        code: as of `subprocess.Popen.returncode`: minus the signal's number, where one ended it.
        last_lines: the end of its stderr, without credentials.
    """
    how = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
    said = f": {last_lines}" if last_lines else ""
    exhausted = code == -signal.SIGBUS or any(sign in last_lines for sign in _EXHAUSTED)
    kind = "resources" if exhausted else "crashed"
    return SourceFault(kind=kind, reason=f"the reader process ended with {how}{said}")


def _kind(error: Exception, number: int | None) -> str:
    for each in type(error).__mro__:
        if each.__name__ in _NAMES:
            return _NAMES[each.__name__]
    if isinstance(error, TimeoutError):
        return "timeout"
    return _NUMBERS.get(number, "unknown") if number is not None else "unknown"


def _unresolved(location: str) -> str | None:
    try:
        host = urlsplit(location).hostname
        if host:
            socket.getaddrinfo(host, None)
    except OSError:
        return host
    except ValueError:
        return None
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
