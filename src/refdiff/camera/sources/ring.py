"""Pixels that pass from a reader process to its parent, in shared memory without a name.

The writer allocates a ring of slots and sends its file descriptor over a Unix socket. A slot belongs to one
side at a time: the writer fills one of its slots and sends the number, the parent copies the pixels out and
sends the number back. So no frame can be torn, and no lock can be left behind by a process that is killed.
Memory without a name is freed by the system when the last side ends, however it ends.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np

from refdiff.contracts.session import ImageArray

SLOTS = 4
"""One is written, one waits, one is being copied, and one is spare."""

_PAGE = mmap.PAGESIZE


class Ring:
    """Slots of equal size in one shared mapping."""

    def __init__(self, memory: mmap.mmap, slot_bytes: int) -> None:
        self._bytes = np.frombuffer(memory, np.uint8)
        self.slot_bytes = slot_bytes

    def pixels(self, slot: int, size_yx: tuple[int, int]) -> ImageArray:
        """Return the view [y, x, 3] of a slot's pixels.

        Raises:
            ValueError: there is no such slot, or the size does not fit it.
        """
        height, width = size_yx
        start, count = slot * self.slot_bytes, height * width * 3
        if not (0 <= slot < SLOTS and 0 < count <= self.slot_bytes and height > 0):
            raise ValueError(f"got slot {slot} with {height}x{width} px, expected one of {SLOTS} slots")
        return self._bytes[start : start + count].reshape(height, width, 3)


def create_ring(size_yx: tuple[int, int]) -> tuple[Ring, int]:
    """Allocate a ring for frames of up to a size.

    Returns:
        The ring and a file descriptor of its memory, which the caller closes after sending it.

    Raises:
        OSError: there is not enough memory.
    """
    slot_bytes = -(-size_yx[0] * size_yx[1] * 3 // _PAGE) * _PAGE
    descriptor = _nameless_file()
    try:
        _reserve(descriptor, slot_bytes * SLOTS)
        return Ring(mmap.mmap(descriptor, slot_bytes * SLOTS), slot_bytes), descriptor
    except BaseException:
        os.close(descriptor)
        raise


def attach_ring(descriptor: int, slot_bytes: int) -> Ring:
    """Map a ring that another process has allocated, to read it.

    Raises:
        ValueError, OSError: the memory is not as large as the ring.
    """
    return Ring(mmap.mmap(descriptor, slot_bytes * SLOTS, prot=mmap.PROT_READ), slot_bytes)


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its memory now: too little is an error here, and would be SIGBUS at a later write."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("refdiff-frames", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
