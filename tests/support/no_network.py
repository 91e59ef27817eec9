"""Run a program without a network: a socket that is not of this machine kills it, from native code too.

    python tests/support/no_network.py PROGRAM ARGUMENT…

The filter (seccomp) needs no privileges and is inherited by child processes.
"""

import ctypes
import os
import platform
import signal
import socket
import struct
import sys

KILLED = -signal.SIGSYS if hasattr(signal, "SIGSYS") else None
"""Return code of a process that opened one."""

_MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""Machine -> the architecture and the number of socket(2); source: linux/audit.h and asm/unistd.h."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def is_possible() -> bool:
    """Whether this system has the filter."""
    return sys.platform == "linux" and platform.machine() in _MACHINES


def forbid_sockets() -> None:
    """Kill this process, or a child, when it opens a socket of any kind but AF_UNIX."""
    architecture, number = _MACHINES[platform.machine()]
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, 5, architecture),
        (_LOAD, 0, 0, 0),
        (_EQUAL, 0, 3, number),
        (_LOAD, 0, 0, 16),
        (_EQUAL, 1, 0, socket.AF_UNIX),
        (_RETURN, 0, 0, _KILL),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    control = ctypes.CDLL(None, use_errno=True).prctl
    for arguments in ((_SET_NO_NEW_PRIVILEGES, 1, 0), (_SET_SECCOMP, _MODE_FILTER, program)):
        if control(*arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl refused the filter")


if __name__ == "__main__":
    forbid_sockets()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - the arguments are a test's
