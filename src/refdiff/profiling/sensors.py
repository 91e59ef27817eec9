"""What the machine says of itself in files while it works: clocks, temperatures, throttling.

In: a root folder, "/" or a test's. Out: facts by name; what a machine does not tell is absent, never guessed.
A Jetson tells all of it:

    sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq      kHz
    sys/class/devfreq/*/cur_freq                              Hz, the GPU's among them
    sys/class/thermal/thermal_zone*/{type,temp}               millidegrees
    sys/class/thermal/cooling_device*/{type,cur_state}        0 while nothing is throttled
    sys/class/hwmon/hwmon*/oc*_event_cnt                      over-current events
    sys/devices/system/cpu/cpu*/thermal_throttle/*_count      on x86

Sources: NVIDIA Jetson Linux Developer Guide, Platform Power and Performance; Linux, Documentation/ABI.

How much memory a process holds while it works, sampled beside it.

In: /proc/self/status, read by a thread of its own. Out: the most that was seen between two moments.
*Resident* is everything in memory, pages of mapped files too; *private* is anonymous memory alone, what
nobody can drop.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

NOT_TOLD = "not told here"

SLOWER = 0.95
"""A clock below this share of what it was at the start counts as fallen; governors waver by a little less."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the sensors said at one moment."""

    clocks_hz: Mapping[str, int] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    throttling: Mapping[str, int] = field(default_factory=dict)
    """Counters and cooling states: larger is worse."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "clocks_hz": dict(self.clocks_hz),
            "temperatures_c": dict(self.temperatures_c),
            "throttling": dict(self.throttling),
        }


class Sensors:
    """Reads clocks, temperatures and throttling.

    Args:
        root: where the machine's files begin.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        system = root / "sys"
        self._clocks = {
            **{
                f"cpu{_number(p.parent.parent)}": (p, 1000) for p in _cpus(system, "cpufreq/scaling_cur_freq")
            },
            **{p.parent.name: (p, 1) for p in sorted((system / "class/devfreq").glob("*/cur_freq"))},
        }
        thermal = system / "class/thermal"
        self._zones = {
            _named(zone): zone / "temp" for zone in sorted(thermal.glob("thermal_zone*"), key=_number)
        }
        self._throttling = {
            **{
                _named(each): each / "cur_state"
                for each in sorted(thermal.glob("cooling_device*"), key=_number)
            },
            **{
                f"{p.parent.name} {p.name}": p
                for p in sorted(system.glob("class/hwmon/hwmon*/oc*_event_cnt"))
            },
            **{
                f"cpu{_number(p.parent.parent)} {p.name}": p
                for p in _cpus(system, "thermal_throttle/*_count")
            },
        }

    def read(self) -> Reading:
        """All of them now; one that cannot be read is left out."""
        clocks = {name: _whole(path) for name, (path, _) in self._clocks.items()}
        zones = {name: _whole(path) for name, path in self._zones.items()}
        throttling = {name: _whole(path) for name, path in self._throttling.items()}
        return Reading(
            clocks_hz={n: v * self._clocks[n][1] for n, v in clocks.items() if v is not None},
            temperatures_c={n: v / 1000 for n, v in zones.items() if v is not None},
            throttling={n: v for n, v in throttling.items() if v is not None},
        )


def throttled(start: Reading, before: Reading, after: Reading) -> tuple[str, ...]:
    """Why a sample between two readings is not like one at the start; empty where it is.

    Args:
        start: under load, before the first sample.
        before: at the sample's begin.
        after: at its end.
    """
    slower = [
        f"{name} at {now / 1e6:.0f} MHz, {start.clocks_hz[name] / 1e6:.0f} at the start"
        for name, now in after.clocks_hz.items()
        if name in start.clocks_hz and now < SLOWER * start.clocks_hz[name]
    ]
    raised = [
        f"{name} went from {before.throttling[name]} to {now}"
        for name, now in after.throttling.items()
        if name in before.throttling and now > before.throttling[name]
    ]
    held = [
        f"{name} is at {now}, {start.throttling[name]} at the start"
        for name, now in after.throttling.items()
        if name in start.throttling
        and name.startswith("cooling ")
        and now > start.throttling[name]
        and now == before.throttling.get(name)
    ]
    return (*slower, *raised, *held)


def _cpus(system: Path, inside: str) -> list[Path]:
    return sorted((system / "devices/system/cpu").glob(f"cpu[0-9]*/{inside}"))


def _number(path: Path) -> int:
    digits = re.search(r"\d+$", path.name)
    return int(digits.group()) if digits else -1


def _named(folder: Path) -> str:
    """A zone by its number and type: two may be of one type."""
    kind = "cooling " if folder.name.startswith("cooling") else ""
    return f"{kind}{_number(folder)} {_text(folder / 'type') or folder.name}"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return None


def _whole(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


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
