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
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
