"""Return freed memory to the system.

glibc keeps freed blocks for later. Where small ones that live long lie between large ones that were freed, as
the encoded images of a server do, a process holds several times what it uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable


def trim_heap() -> None:
    """Return the freed pages of the heap to the system; does nothing where the C library is not glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class HeapTrimmer:
    """Trims the heap from time to time, for at most 2 % of the time.

    Args:
        trim: trims it.
        clock: returns the time in s.
    """

    _PAUSE_S = 10.0
    _SHARE = 0.02

    def __init__(
        self, trim: Callable[[], None] = trim_heap, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trim, self._clock = trim, clock
        self._next_s = clock() + self._PAUSE_S

    def __call__(self) -> None:
        """Trim the heap, unless that was done a short time ago."""
        started = self._clock()
        if started < self._next_s:
            return
        self._trim()
        ended = self._clock()
        self._next_s = ended + max(self._PAUSE_S, (ended - started) / self._SHARE)
