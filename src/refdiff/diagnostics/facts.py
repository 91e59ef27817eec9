"""One line of a diagnosis: what was looked at, how it is, what was found, and what mends it.

What is known of a machine, as plain values; None and empty mean that nobody could say.

Sizes in bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refdiff.engines.trt.device import Device

State = Literal["ok", "warn", "fail"]
"""ok: nothing to do. warn: something will not work, or not as well as it could. fail: nothing runs."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The line."""

    section: str
    name: str
    state: State
    found: str
    cure: str = ""

    def to_json(self) -> dict[str, str]:
        """A JSON-ready dictionary."""
        return dataclasses.asdict(self)


def readable(size: int | None) -> str:
    """A size as people write it."""
    if size is None:
        return "an unknown amount"
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine without its GPU."""

    system: str
    """Such as "Ubuntu 22.04.5 LTS"."""
    kernel: str
    arch: str
    python: str
    processor: str
    cores: int
    memory_total: int | None
    memory_free: int | None
    """What a program can still take: within the container's limit, if there is one."""
    swap_free: int


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs, and what drives them."""

    devices: tuple[Device, ...]
    """As CUDA shows them; the first is used."""
    why_none: str
    """Why there are none, "" where there are."""
    listed: tuple[str, ...]
    """What nvidia-smi shows."""
    driver: str | None
    """Its version."""
    memory_free: int | None
    """Of the first."""

    @property
    def first(self) -> Device | None:
        """The one that is used."""
        return self.devices[0] if self.devices else None


@dataclass(frozen=True, kw_only=True)
class CudaLibraries:
    """What the system, not pip, has of CUDA."""

    toolkit: str | None
    found: Mapping[str, tuple[str, ...]]
    """Library -> its major versions, such as "cudnn" -> ("9",)."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The range a clock moves in, in MHz."""

    name: str
    least: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Jetson:
    """What only a Jetson has."""

    model: str
    l4t: str | None
    """Version of Jetson Linux, such as "36.4.3"."""
    jetpack: str | None
    power_mode: str | None
    power_modes: Mapping[str, int]
    """Name -> the number that nvpmodel takes."""
    power_fault: str
    """Why the mode is not known, "" where it is."""
    clocks: tuple[Clock, ...]


@dataclass(frozen=True, kw_only=True)
class OnnxRuntime:
    """What ONNX Runtime says of itself."""

    providers: tuple[str, ...]
    fault: str | None
    """Why it cannot be imported."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """One of refdiff's extras, on this machine."""

    name: str
    missing: tuple[str, ...]
    outdated: tuple[str, ...]
    """Such as "onnx 1.16, needs 1.17"."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Room for files."""

    purpose: str
    folder: Path
    """The folder itself, or the nearest above it that exists."""
    free: int
    writable: bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    """All of it."""

    refdiff: str
    host: Host
    gpus: Gpus
    cuda: CudaLibraries
    jetson: Jetson | None
    packages: Mapping[str, str]
    """Package -> version, of those that matter here and are installed."""
    onnxruntime: OnnxRuntime | None
    extras: tuple[Extra, ...]
    """Empty where refdiff was not installed as a package."""
    disks: tuple[Disk, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        document = dataclasses.asdict(self)
        for disk in document["disks"]:
            disk["folder"] = str(disk["folder"])
        return document


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers a version starts with: "10.3.0+cu12" -> (10, 3, 0)."""
    numbers: list[int] = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if digits:
            numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
