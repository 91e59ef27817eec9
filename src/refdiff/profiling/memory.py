"""How much memory a process holds while it works, sampled beside it.

In: /proc/self/status, read by a thread of its own. Out: the most that was seen between two moments.
*Resident* is everything in memory, pages of mapped files too; *private* is anonymous memory alone, what
nobody can drop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

STATUS = Path("/proc/self/status")
SECONDS_BETWEEN = 0.001


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of the process, in bytes."""

    resident: int
    private: int

    def larger(self, other: Memory | None) -> Memory:
        """The larger of each kind."""
        if other is None:
            return self
        return Memory(resident=max(self.resident, other.resident), private=max(self.private, other.private))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"resident_bytes": self.resident, "private_bytes": self.private}


class MemorySampler:
    """Samples from the begin to the end of its `with` block.

    Args:
        status: the kernel's file; where there is none, nothing is ever seen.
        clock: the same as the spans', in ns.
    """

    def __init__(self, status: Path = STATUS, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._status = status
        self._clock = clock
        self._stop = threading.Event()
        self._samples: list[tuple[int, Memory]] = []
        self._thread = threading.Thread(target=self._sample, name="refdiff-memory", daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def most(self, start_ns: int, end_ns: int) -> Memory | None:
        """The most of each kind between two moments; None where no sample fell between them."""
        seen = [memory for at, memory in self._samples if start_ns <= at <= end_ns]
        if not seen:
            return None
        return Memory(
            resident=max(each.resident for each in seen), private=max(each.private for each in seen)
        )

    def _sample(self) -> None:
        while not self._stop.is_set():
            memory = read_memory(self._status)
            if memory is None:
                return
            self._samples.append((self._clock(), memory))
            self._stop.wait(SECONDS_BETWEEN)


def read_memory(status: Path = STATUS) -> Memory | None:
    """Of this moment; None where the kernel does not tell."""
    values = _values(status, "VmRSS", "RssAnon")
    return None if values is None else Memory(resident=values[0], private=values[1])


def peak_resident(status: Path = STATUS) -> int | None:
    """The kernel's own high-water mark of the process, in bytes."""
    values = _values(status, "VmHWM")
    return None if values is None else values[0]


def _values(status: Path, *names: str) -> list[int] | None:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    try:
        return [int(fields[name].split()[0]) * 1024 for name in names]
    except (KeyError, IndexError, ValueError):
        return None
