"""Readings of the kernel while the pipeline works: clocks, temperatures, throttling, and memory in use.

In: files below a root folder, "/" or a test's. What a machine does not report is absent, never guessed. A
Jetson reports all of it:

    sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq      kHz
    sys/class/devfreq/*/cur_freq                              Hz, the GPU's among them
    sys/class/thermal/thermal_zone*/{type,temp}               millidegrees
    sys/class/thermal/cooling_device*/{type,cur_state}        0 while nothing is throttled
    sys/class/hwmon/hwmon*/oc*_event_cnt                      over-current events
    sys/devices/system/cpu/cpu*/thermal_throttle/*_count      on x86
    proc/self/status                                          memory of the process

Sources: NVIDIA Jetson Linux Developer Guide, Platform Power and Performance; Linux, Documentation/ABI.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

NOT_REPORTED = "not reported here"

SLOWER = 0.95
"""A clock below this share of its value at the start counts as lowered; governors waver by a little less."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The values of all sensors at one moment."""

    clocks_hz: Mapping[str, int] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    throttling: Mapping[str, int] = field(default_factory=dict)
    """Counters and cooling states: larger is worse."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


class Sensors:
    """Reads clocks, temperatures and throttling.

    Args:
        root: where the machine's files begin.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        cpus, classes = root / "sys/devices/system/cpu", root / "sys/class"
        self._clocks_khz = {
            f"cpu{_number(path.parent.parent)}": path
            for path in sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        }
        self._clocks_hz = {
            path.parent.name: path for path in sorted((classes / "devfreq").glob("*/cur_freq"))
        }
        self._millidegrees = _by_type(classes / "thermal", "thermal_zone*", "temp")
        self._throttling = {
            **_by_type(classes / "thermal", "cooling_device*", "cur_state"),
            **{
                f"{path.parent.name} {path.name}": path
                for path in sorted(classes.glob("hwmon/hwmon*/oc*_event_cnt"))
            },
            **{
                f"cpu{_number(path.parent.parent)} {path.name}": path
                for path in sorted(cpus.glob("cpu[0-9]*/thermal_throttle/*_count"))
            },
        }

    def read(self) -> Reading:
        """Read all sensors now; one that cannot be read is absent."""
        kilohertz = {name: 1000 * value for name, value in _read_all(self._clocks_khz).items()}
        return Reading(
            clocks_hz=kilohertz | _read_all(self._clocks_hz),
            temperatures_c={name: value / 1000 for name, value in _read_all(self._millidegrees).items()},
            throttling=_read_all(self._throttling),
        )


def throttled(start: Reading, before: Reading, after: Reading) -> tuple[str, ...]:
    """Say why the machine was slower during a sample than at the start; empty if it was not.

    Args:
        start: under load, before the first sample.
        before: at the beginning of the sample.
        after: at its end.
    """
    slower = [
        f"{name} at {now / 1e6:.0f} MHz, {start.clocks_hz[name] / 1e6:.0f} at the start"
        for name, now in after.clocks_hz.items()
        if now < SLOWER * start.clocks_hz.get(name, 0)
    ]
    raised = [
        f"{name} went from {before.throttling[name]} to {now}"
        for name, now in after.throttling.items()
        if now > before.throttling.get(name, now)
    ]
    held = [
        f"{name} is at {now}, {start.throttling[name]} at the start"
        for name, now in after.throttling.items()
        if name.startswith("cooling ")
        and now == before.throttling.get(name)
        and now > start.throttling.get(name, now)
    ]
    return (*slower, *raised, *held)


def _by_type(folder: Path, pattern: str, file: str) -> dict[str, Path]:
    """Return files by number and type of their folder: two zones may have one type."""
    named = {}
    for each in sorted(folder.glob(pattern), key=_number):
        kind = "cooling " if each.name.startswith("cooling") else ""
        named[f"{kind}{_number(each)} {_read_text(each / 'type') or each.name}"] = each / file
    return named


def _number(path: Path) -> int:
    digits = re.search(r"\d+$", path.name)
    return int(digits.group()) if digits else -1


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return None


def _read_all(paths: Mapping[str, Path]) -> dict[str, int]:
    values = {}
    for name, path in paths.items():
        text = _read_text(path)
        if text is not None and re.fullmatch(r"-?\d+", text):
            values[name] = int(text)
    return values


STATUS = Path("/proc/self/status")
SECONDS_BETWEEN = 0.001


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the process, in bytes."""

    resident: int
    """In memory, pages of mapped files included."""
    private: int
    """Anonymous memory alone, which the system cannot drop."""

    def larger(self, other: Memory | None) -> Memory:
        """Return the larger value of each kind."""
        if other is None:
            return self
        return Memory(resident=max(self.resident, other.resident), private=max(self.private, other.private))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"resident_bytes": self.resident, "private_bytes": self.private}


class MemorySampler:
    """Reads the process's memory in a thread of its own, from the start to the end of its `with` block.

    Args:
        status: the kernel's file; if there is none, no memory is ever seen.
        clock: the spans' clock, in ns.
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

    def highest(self, start_ns: int, end_ns: int) -> Memory | None:
        """Return the highest value of each kind between two moments; None if there was no sample."""
        highest: Memory | None = None
        for at, memory in self._samples:
            if start_ns <= at <= end_ns:
                highest = memory.larger(highest)
        return highest

    def _sample(self) -> None:
        while not self._stop.is_set():
            memory = read_memory(self._status)
            if memory is None:
                return
            self._samples.append((self._clock(), memory))
            self._stop.wait(SECONDS_BETWEEN)


def read_memory(status: Path = STATUS) -> Memory | None:
    """Read the memory in use now; None if the kernel does not report it."""
    values = _read_status(status, "VmRSS", "RssAnon")
    return None if values is None else Memory(resident=values[0], private=values[1])


def peak_resident(status: Path = STATUS) -> int | None:
    """Read the kernel's high-water mark of the process's resident memory, in bytes."""
    values = _read_status(status, "VmHWM")
    return None if values is None else values[0]


def _read_status(status: Path, *names: str) -> list[int] | None:
    lines = (_read_text(status) or "").splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    try:
        return [int(fields[name].split()[0]) * 1024 for name in names]
    except (KeyError, IndexError, ValueError):
        return None
