"""Lock files, so that one process at a time works in a folder.

In: the lock's file. The system's own locks are used (flock, on Windows msvcrt.locking), which it releases
when a process dies, whatever ended it.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LOGGER = logging.getLogger(__name__)

_POLL_SECONDS = 0.2

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of a disk without locks, such as some network disks."""


def take_lock(handle: int) -> bool:
    """Lock an open file; return whether it was free.

    Raises:
        OSError: the disk has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
    else:
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextmanager
def lock_file(
    path: Path,
    *,
    on_busy: Callable[[], object],
    required: bool = False,
    take: Callable[[int], bool] = take_lock,
) -> Iterator[None]:
    """Hold an advisory lock.

    Args:
        path: the lock's file, made if it is missing.
        on_busy: called once if another process holds the lock; it raises to give up, else the lock is
            waited for.
        required: raise on a disk without locks; False logs a warning and continues without one.
        take: locks an open file and returns whether it was free.

    Raises:
        OSError: the file cannot be opened for writing, or not be locked.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait(path, on_busy, lambda: take(handle), required=required)
        yield
    finally:
        os.close(handle)


def _wait(path: Path, on_busy: Callable[[], object], take: Callable[[], bool], *, required: bool) -> None:
    try:
        free = take()
    except OSError as error:
        if required or error.errno not in _NO_LOCKS:
            raise
        _LOGGER.warning("%s: no locks here (%s); do not start a second run", path, error.strerror)
        return
    if not free:
        on_busy()
        while not take():
            time.sleep(_POLL_SECONDS)
